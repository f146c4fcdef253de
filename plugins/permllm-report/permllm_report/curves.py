"""The losses while a run learned, from the event log."""

from __future__ import annotations

from functools import partial
from statistics import fmean

import attrs
from markupsafe import Markup

from permllm.reporting import Course, RunRecord, number, training_curves
from permllm_report.inline import inline

MOST_POINTS = {"loss": 160, "held_out_loss": 24, "temperature": 160}
"""Longer courses are drawn as means over neighbouring steps."""


@attrs.frozen
class LossChart:
    """The losses of one run.

    Attributes:
        label: the run's.
        picture: learning and held-out loss by step.
        averaged: whether points are means over several steps.
        held_out: first, last and best of the held-out losses in words, or empty.
    """

    label: str
    picture: Markup
    averaged: bool
    held_out: str


def loss_chart(run: RunRecord, name: str) -> LossChart | None:
    """The chart of a run, whose picture has a name; None if it learned nothing."""
    courses = {key: course for key in MOST_POINTS if (course := run.history.get(key, []))}
    if not courses.keys() & {"loss", "held_out_loss"}:
        return None
    drawn = {key: thinned(course, MOST_POINTS[key]) for key, course in courses.items()}
    history, starts = {run.label: [drawn]}, run.window_starts
    draw = partial(training_curves, history, starts, titled=False, width=4.7)
    parts = [f"{key.replace('_', ' ')} from {number(course[0][1])} to {number(course[-1][1])}"
            for key, course in courses.items()]  # fmt: skip
    words = f"Training of {run.label}: {', '.join(parts)}."
    averaged = any(len(drawn[key]) < len(course) for key, course in courses.items())
    held_out = _in_words(courses.get("held_out_loss", []))
    return LossChart(run.label, inline(draw, name, words), averaged, held_out)


def thinned(course: Course, most: int) -> Course:
    """At most so many points: the means of neighbours, of steps and of values."""
    width = -(-len(course) // most)
    parts = [course[start : start + width] for start in range(0, len(course), width)]
    return [(fmean(step for step, _ in part), fmean(value for _, value in part)) for part in parts]


def _in_words(course: Course) -> str:
    if not course:
        return ""
    step, best = min(course, key=lambda point: point[1])
    first, last = number(course[0][1]), number(course[-1][1])
    return f"Held out: {first} first, {last} last, best {number(best)} at step {step}."
