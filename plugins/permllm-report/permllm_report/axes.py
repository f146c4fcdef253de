"""The axes of a chart: where values go, and which of them are written there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import attrs
from markupsafe import Markup

from permllm.runs.units import duration
from permllm_report.svg import grid, group, line, text

LOGARITHMIC = 8.0
"""Positive values that differ by this factor get a logarithmic axis."""

MOST_TICKS = 5

NICE_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600,
                7200, 18000, 36000, 86400, 172800, 432000, 864000)  # fmt: skip
"""Durations that people count in."""


@attrs.frozen
class Axis:
    """Maps values to places between two ends.

    Attributes:
        low, high: the values at its ends.
        start, end: the places of its ends.
        logarithmic: whether equal factors, rather than differences, are equally far.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    @classmethod
    def around(
        cls, values: Iterable[float], start: float, end: float, margin: float = 0.06
    ) -> Axis:
        """An axis that holds ``values`` (at least one) with a margin at both ends."""
        found = list(values)
        low, high = min(found), max(found)
        if low > 0 and high / low >= LOGARITHMIC:
            spare = (high / low) ** margin
            return cls(low / spare, high * spare, start, end, True)
        spare = (high - low) * margin or abs(high) * margin or 1.0
        return cls(low - spare, high + spare, start, end)

    def place(self, value: float) -> float:
        """Where ``value`` goes."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values on the axis, a handful."""
        found = log_ticks(self.low, self.high) if self.logarithmic else []
        return found if len(found) > 1 else linear_ticks(self.low, self.high)

    def time_ticks(self) -> list[float]:
        """Durations in seconds that people count in, a handful."""
        if self.logarithmic:
            found = thinned([nice for nice in NICE_SECONDS if self.low <= nice <= self.high])
        else:
            rough = (self.high - self.low) / MOST_TICKS
            step = next((nice for nice in NICE_SECONDS if nice >= rough), rough)
            found = multiples(step, max(self.low, 0.0), self.high)
        return found if len(found) > 1 else self.ticks()


def linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most a handful.

    >>> linear_ticks(0.0, 9.0)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    rough = (high - low) / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough)
    return multiples(step, low, high)


def log_ticks(low: float, high: float) -> list[float]:
    """Values such as 1, 2, 5, 10, 20, … or 1, 10, 100, …, at most a handful.

    >>> log_ticks(3, 700), log_ticks(1e-3, 1e9)
    ([3.0, 10.0, 30.0, 100.0, 300.0], [0.001, 1.0, 1000.0, 1000000.0, 1000000000.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        values = [digit * 10.0**power for power in powers for digit in digits]
        found = [value for value in values if low <= value <= high]
        if len(found) <= MOST_TICKS:
            return found
    return thinned(found)


def multiples(step: float, low: float, high: float) -> list[float]:
    """The multiples of ``step`` between two values."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def thinned(values: Sequence[float]) -> list[float]:
    """Every second, third, … of some values, so that a handful is left."""
    return list(values[:: -(-len(values) // MOST_TICKS) or 1])


def short_number(value: float) -> str:
    """A round value.

    >>> short_number(150.0), short_number(0.05)
    ('150', '0.05')
    """
    return f"{value:.6g}"


def short_duration(seconds: float) -> str:
    """A round duration.

    >>> short_duration(60), short_duration(5), short_duration(7200), short_duration(0.5)
    ('1 min', '5 s', '2 h', '0.5 s')
    """
    said = duration(seconds).replace(".0 s", " s")
    return said.removesuffix(" 0 s").removesuffix(" 0 min")


def frame(
    across: Axis,
    up: Axis,
    titles: tuple[str, str],
    ticks: tuple[Sequence[float], Sequence[float]],
    *,
    across_said: Callable[[float], str] = short_number,
) -> Markup:
    """Grid, ticks and titles of a chart.

    Args:
        across, up: its axes; ``up`` starts at the bottom.
        titles: of ``across``, below it, and of ``up``, above it.
        ticks: the values that are written at each.
        across_said: how those of ``across`` are written.
    """
    xs = [(across.place(value), across_said(value)) for value in ticks[0]]
    ys = [(up.place(value), short_number(value)) for value in ticks[1]]
    middle = (across.start + across.end) / 2
    return group(
        [
            grid(
                [x for x, _ in xs],
                [y for y, _ in ys],
                (across.start, across.end),
                (up.start, up.end),
            ),
            line([(across.start, up.start), (across.end, up.start)], "base"),
            group([text(x, up.start + 15, said) for x, said in xs], text_anchor="middle"),
            group([text(across.start - 6, y + 4, said) for y, said in ys], text_anchor="end"),
            text(middle, up.start + 32, titles[0], anchor="middle"),
            text(4, up.end - 9, titles[1]),
        ],
        class_="axes",
    )
