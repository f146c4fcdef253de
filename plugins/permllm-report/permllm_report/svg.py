"""Inline SVG, element by element, with everything escaped."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

Point = tuple[float, float]


def element(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """An element; ``class_`` and ``text_anchor`` become ``class`` and ``text-anchor``.

    >>> element("text", "<b>", x=1.24, class_="soft")
    Markup('<text x="1.2" class="soft">&lt;b&gt;</text>')
    """
    said = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    if not children:
        return Markup("<{}{}/>").format(Markup(name), said)
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{}{}>{}</{}>").format(Markup(name), said, inside, Markup(name))


def picture(width: float, height: float, label: str, *children: Markup, class_: str = "") -> Markup:
    """A whole picture, which a screen reader reads as ``label``."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {_plain(width)} {_plain(height)}",
        class_=f"chart {class_}".strip(),
        role="img",
        aria_label=label,
    )


def line(points: Iterable[Point], class_: str) -> Markup:
    """A line through points."""
    places = [f"{_plain(x)} {_plain(y)}" for x, y in points]
    return element("path", d="M" + "L".join(places), class_=class_) if places else Markup("")


def dots(points: Iterable[Point], class_: str) -> Markup:
    """A dot at each point, all of them one path; its stroke's width is their size."""
    places = "".join(f"M{_plain(x)} {_plain(y)}h0" for x, y in points)
    return element("path", d=places, class_=f"dots {class_}") if places else Markup("")


def grid(
    xs: Iterable[float], ys: Iterable[float], across: tuple[float, float], up: tuple[float, float]
) -> Markup:
    """Upright lines at ``xs`` and level ones at ``ys`` between the ends of two axes."""
    upright = [f"M{_plain(x)} {_plain(up[0])}V{_plain(up[1])}" for x in xs]
    level = [f"M{_plain(across[0])} {_plain(y)}H{_plain(across[1])}" for y in ys]
    return element("path", d="".join([*upright, *level]), class_="grid")


def text(x: float, y: float, said: str, class_: str = "", anchor: str | None = None) -> Markup:
    """A text whose base line is at ``y``."""
    return element("text", said, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def group(parts: Iterable[Markup], **attributes: object) -> Markup:
    """Elements together."""
    return element("g", *parts, **attributes)


def _plain(value: object) -> str:
    """An attribute's value; numbers with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
