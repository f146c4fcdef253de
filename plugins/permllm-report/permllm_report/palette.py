"""Colours for light and dark pages, told apart by colour-blind readers too.

The shades of a heat map are one hue from faint to strong: what is more stands out more
from the page, in either scheme. Each cell shows its figure as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

Shades = tuple[str, ...]

LEVELS = 8
"""Shades of each hue."""


@attrs.frozen
class Scheme:
    """The colours of a page.

    Attributes:
        page, panel: grounds, of the page and of what stands out from it.
        ink, soft: texts.
        rule: hairlines and grids.
        one, two: the two series of a chart, blue and orange.
        dense: the dense model, and what was before.
        heat: shades from the least to the most, by hue.
    """

    page: str
    panel: str
    ink: str
    soft: str
    rule: str
    one: str
    two: str
    dense: str
    heat: Mapping[str, Shades]


BLUE, GREEN, ORANGE = "blue", "green", "orange"

LIGHT = Scheme(
    page="#ffffff",
    panel="#f5f7f9",
    ink="#1a1f24",
    soft="#56606a",
    rule="#dce1e6",
    one="#0b66a8",
    two="#b54708",
    dense="#767f88",
    heat={
        BLUE: ("#f1f7fd", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5",
               "#08519c"),
        GREEN: ("#f3faf1", "#e2f3dd", "#c7e9c0", "#a1d99b", "#74c476", "#41ab5d", "#1f8040",
                "#006d2c"),
        ORANGE: ("#fff5eb", "#fee6ce", "#fdd0a2", "#fdae6b", "#fd8d3c", "#f16913", "#cf4400",
                 "#9a3203"),
    },
)  # fmt: skip

DARK = Scheme(
    page="#14181c",
    panel="#1d2328",
    ink="#e8ebee",
    soft="#a9b3bd",
    rule="#363f47",
    one="#6cb4f0",
    two="#ff9d5c",
    dense="#8f99a3",
    heat={
        BLUE: ("#17222c", "#14304a", "#124066", "#145385", "#2069a5", "#3f87c4", "#6ca9dc",
               "#a3cdf0"),
        GREEN: ("#182420", "#15352a", "#134734", "#145b40", "#20744f", "#3d9166", "#66b184",
                "#a0d6b0"),
        ORANGE: ("#271e18", "#432615", "#603213", "#804013", "#a35219", "#c66a2a", "#e48c4e",
                 "#f8ba8a"),
    },
)  # fmt: skip

BLACK, WHITE = "#101418", "#ffffff"


def declarations(scheme: Scheme) -> Iterator[tuple[str, str]]:
    """The scheme's colours as CSS custom properties; a text colour for each shade."""
    for field in attrs.fields(Scheme):
        if field.name != "heat":
            yield f"--{field.name}", getattr(scheme, field.name)
    for hue, shades in scheme.heat.items():
        for level, shade in enumerate(shades):
            yield f"--{hue}{level}", shade
            yield f"--on-{hue}{level}", text_on(shade)


def text_on(ground: str) -> str:
    """Black or white, whichever is read more easily on ``ground``."""
    return max((BLACK, WHITE), key=lambda text: contrast(text, ground))


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two ``#rrggbb`` colours, 1 to 21 (WCAG 2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """The relative luminance of a ``#rrggbb`` colour, 0 to 1 (WCAG 2)."""
    parts = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
              for part in parts]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
