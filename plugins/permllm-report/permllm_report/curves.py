"""The losses while a run learned, from the event log."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
from markupsafe import Markup

from permllm.report.history import Series
from permllm.runs.units import number
from permllm_report.axes import Axis, frame
from permllm_report.record import RunRecord
from permllm_report.svg import Point, dots, line, picture

LEARNING, HELD_OUT = "loss", "held_out_loss"
"""The names under which learners report their losses."""

MOST_POINTS = 160
"""Longer courses are drawn as means over neighbouring steps."""

MOST_HELD_OUT = 24
"""Of more values on held-out text, every second, third, … is drawn, and the last."""

SIZE = (340.0, 220.0)


@attrs.frozen
class LossChart:
    """The losses of one run.

    Attributes:
        label: the run's.
        picture: learning and held-out loss by step.
        averaged: over how many steps each point of the learning loss is a mean.
        first, last, best: held-out losses in words, empty without any.
    """

    label: str
    picture: Markup
    averaged: int
    first: str = ""
    last: str = ""
    best: str = ""


def loss_chart(run: RunRecord) -> LossChart | None:
    """The chart of a run; None if it learned nothing."""
    learning, held_out = run.history.get(LEARNING, []), run.history.get(HELD_OUT, [])
    if not learning and not held_out:
        return None
    averaged = -(-len(learning) // MOST_POINTS) if learning else 1
    said = {}
    if held_out:
        losses = [loss for _, loss in held_out]
        said = {
            "first": number(losses[0]),
            "last": number(losses[-1]),
            "best": f"{number(min(losses))} at step {min(held_out, key=lambda at: at[1])[0]}",
        }
    drawn = _draw(run, means(learning, averaged), every(held_out, MOST_HELD_OUT))
    return LossChart(run.label, drawn, averaged, **said)


def means(course: Series, width: int) -> list[Point]:
    """The means of ``width`` neighbours each, of steps and of values."""
    parts = [course[start : start + width] for start in range(0, len(course), width)]
    return [
        (sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part))
        for part in parts
    ]


def every(course: Series, most: int) -> list[Point]:
    """At most ``most`` of some points, evenly spread, the last and the lowest among them."""
    if not course:
        return []
    stride = -(-len(course) // max(most - 2, 1))
    lowest = min(range(len(course)), key=lambda index: course[index][1])
    chosen = {*range(0, len(course), stride), len(course) - 1, lowest}
    return [course[index] for index in sorted(chosen)]


def _draw(run: RunRecord, learning: Sequence[Point], held_out: Sequence[Point]) -> Markup:
    width, height = SIZE
    points = [*learning, *held_out]
    steps = [step for step, _ in points]
    across = Axis(min(steps), max(max(steps), min(steps) + 1), 52.0, width - 16.0)
    up = Axis.around([loss for _, loss in points], height - 42.0, 26.0)

    def places(of: Sequence[Point]) -> list[Point]:
        return [(across.place(step), up.place(loss)) for step, loss in of]

    ticks = [step for step in across.ticks() if step.is_integer()]
    starts = [start + 0.5 for start in run.window_starts if across.low < start < across.high]
    return picture(
        width,
        height,
        _in_words(run.label, learning, held_out),
        frame(across, up, ("training step", "loss"), (ticks, up.ticks())),
        *(line([(across.place(x), up.start), (across.place(x), up.end)], "window") for x in starts),
        *(line(places(part), "learning") for part in split(learning, starts)),
        *(line(places(part), "held-out") for part in split(held_out, starts)),
        dots(places(held_out), "held-out"),
    )


def split(points: Sequence[Point], starts: Sequence[float]) -> list[list[Point]]:
    """The points of each window: a line from one window's end to the next is no course."""
    ends = [*starts, math.inf]
    lows = [-math.inf, *starts]
    parts = [
        [point for point in points if low <= point[0] < high]
        for low, high in zip(lows, ends, strict=True)
    ]
    return [part for part in parts if part]


def _in_words(label: str, learning: Sequence[Point], held_out: Sequence[Point]) -> str:
    told = [
        f"{what} loss from {number(course[0][1])} to {number(course[-1][1])}"
        for what, course in (("learning", learning), ("held-out", held_out))
        if course
    ]
    return f"Training of {label}: {', '.join(told)}."
