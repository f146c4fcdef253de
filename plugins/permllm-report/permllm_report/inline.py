"""matplotlib's pictures as parts of a page: compact, named, and in the page's colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from markupsafe import Markup

from permllm.reporting import COLOURS, FAINT, GREY, STYLE
from permllm_report.palette import LIGHT, Scheme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = {getattr(LIGHT, field.name): field.name for field in attrs.fields(Scheme)
       if field.name != "heat"}  # fmt: skip
NAMES = OWN | {COLOURS[0]: "one", COLOURS[1]: "two", GREY: "dense", FAINT: "rule"}
VARIABLES = {colour.lower(): f"var(--{name})" for colour, name in NAMES.items()}
"""What colours are called in the page's style sheet, which gives them for light and dark."""

PAGE_STYLE: dict[str, Any] = STYLE | {
    "font.size": 12,
    "axes.titlesize": 12,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    # What is black would not be written into the file, and stay black in the dark.
    "text.color": LIGHT.ink,
    "axes.labelcolor": LIGHT.soft,
    "axes.edgecolor": LIGHT.dense,
    "xtick.labelcolor": LIGHT.soft,
    "ytick.labelcolor": LIGHT.soft,
    "xtick.bottom": False,
    "ytick.left": False,
    "axes.spines.left": False,
    "svg.fonttype": "none",
}


def inline(draw: Callable[[], Figure], name: str, label: str, class_: str = "") -> Markup:
    """A picture as an ``svg`` element.

    Args:
        draw: makes it, in the page's style.
        name: of this picture alone; ids are made of it.
        label: what a screen reader reads.
        class_: further classes of the element.
    """
    root, _, parts = re.sub(r"^.*?(?=<svg )|<(metadata|style).*?</\1>", "", _saved(draw, name),
                            flags=re.DOTALL).partition(">")  # fmt: skip
    head = Markup('<svg class="{}" role="img" aria-label="{}" viewBox="{}">').format(
        f"chart {class_}".strip(), label, re.findall('viewBox="(.*?)"', root)[0]
    )
    # Texts are escaped: what stands between < and > is a tag.
    short = re.sub("<[^>]*>", lambda tag: _short(tag[0]), parts)
    return head + Markup(re.sub(r">\s+<", "><", short).strip())


def _saved(draw: Callable[[], Figure], name: str) -> str:
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context(PAGE_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's fonts have letters that matplotlib's lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        draw().savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _short(tag: str) -> str:
    """A tag without what only matplotlib knows, with the page's colours; groups have none left."""
    for pattern, short in (
        (r"(?s)</?g\b.*", ""),
        # Ids that nothing refers to; the others are hashes.
        (r' id="(?!.[0-9a-f]{10}")[^"]*"', ""),
        (r' transform="rotate\(-0 [^"]*"|font-family: [^;"]*;? ?|xlink:(?=href)', ""),
        ("#[0-9a-f]{6}", lambda colour: VARIABLES.get(colour[0], colour[0])),
        (r"-?\d+\.\d+", lambda at: f"{float(at[0]):.1f}".removesuffix(".0")),
        (r"\s+", " "),
        # The page's style sheet says so for all.
        (r"fill: none(; )?|font-size: 12px; |; stroke-linecap: square", ""),
        # What has no colour is not seen.
        (r'<path [^>]*style=""/>', ""),
        # A line without a length is a dot.
        (r"M (\S+ \S+) L \1 ", r"M\1h0"),
    ):
        tag = re.sub(pattern, short, tag)
    return tag
