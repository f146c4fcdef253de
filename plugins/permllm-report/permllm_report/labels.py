"""Labels beside points, so that they neither lie on each other nor on a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from permllm_report.svg import Point

LETTER, LINE = 6.7, 14.0
"""The room that a letter and a line take, at the charts' size of letters."""

MARK = 5.0
"""Half the width of a point's mark."""

DISTANCES = (9.0, 22.0, 36.0, 52.0)
"""How far from its point a label may stand; beyond the first a line leads to it."""

DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
"""Where it may stand, the best first: right, left, above, below, and the corners."""


@attrs.frozen
class Box:
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether they share more than an edge."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def inside(self, other: Box) -> bool:
        """Whether it lies within ``other``."""
        return (
            self.left >= other.left
            and self.top >= other.top
            and self.right <= other.right
            and self.bottom <= other.bottom
        )


@attrs.frozen
class Label:
    """A text and where it stands.

    Attributes:
        said: the text.
        box: the room that it takes.
        lead: a line from its point to it, where it stands far off.
    """

    said: str
    box: Box
    lead: tuple[Point, Point] | None


def place_labels(points: Sequence[Point], texts: Sequence[str], frame: Box) -> list[Label]:
    """A label for each point, in order; where there is no free place, on its right.

    Args:
        points: all that must stay free.
        texts: of the points.
        frame: where labels may stand.
    """
    taken = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in points]
    placed = []
    for point, said in zip(points, texts, strict=True):
        choices = [label for label in _choices(point, said) if label.box.inside(frame)]
        free = (label for label in choices if not any(map(label.box.overlaps, taken)))
        label = next(free, None) or (choices or list(_choices(point, said)))[0]
        taken.append(label.box)
        placed.append(label)
    return placed


def _choices(point: Point, said: str) -> Iterator[Label]:
    x, y = point
    wide = len(said) * LETTER
    for distance in DISTANCES:
        for right, down in DIRECTIONS:
            middle = y + down * (distance if not right else 0.8 * distance)
            left = x - wide / 2
            if right:
                left = x + distance if right > 0 else x - distance - wide
            box = Box(left, middle - LINE / 2, left + wide, middle + LINE / 2)
            near = (min(max(x, box.left), box.right), min(max(y, box.top), box.bottom))
            yield Label(said, box, (point, near) if distance > DISTANCES[0] else None)
