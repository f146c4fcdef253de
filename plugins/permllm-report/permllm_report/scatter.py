"""Perplexity against the time that pruning took."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import attrs
from markupsafe import Markup

from permllm.report.comparison import PERPLEXITY, dense_run, perplexities
from permllm.results import Results, RunResult
from permllm.runs.units import duration, number
from permllm_report.axes import Axis, frame, short_duration
from permllm_report.labels import Box, Label, place_labels
from permllm_report.svg import Point, dots, element, line, picture, text

NAMED = 12
"""More settings than these are numbered as in the table."""

WIDE, NARROW = (760.0, 400.0), (350.0, 380.0)
"""Sizes for two kinds of screens; letters have one size in both."""


@attrs.frozen
class Spot:
    """One setting in the chart.

    Attributes:
        label: its label.
        number: its number in the table, from 1.
        runs: time in seconds and perplexity of each repeat.
    """

    label: str
    number: int
    runs: tuple[Point, ...]

    @property
    def middle(self) -> Point:
        """The mean of the repeats."""
        count = len(self.runs)
        return sum(x for x, _ in self.runs) / count, sum(y for _, y in self.runs) / count


@attrs.frozen
class CostChart:
    """One perplexity's chart.

    Attributes:
        figure: the perplexity's name.
        wide, narrow: the same chart in two shapes.
        numbered: whether points have the numbers of the table in place of labels.
        repeated: whether small dots show repeats.
        left_out: what has no place in it, with its perplexity.
    """

    figure: str
    wide: Markup
    narrow: Markup
    numbered: bool
    repeated: bool
    left_out: tuple[str, ...]


def cost_charts(results: Results, numbers: Mapping[str, int]) -> Iterator[CostChart]:
    """A chart for each perplexity that at least two pruned runs have.

    Args:
        results: what was measured.
        numbers: the number of each setting in the table.
    """
    dense = dense_run(results)
    pruned = [run for run in results.runs if run is not dense and run.error is None]
    for figure in perplexities(results):
        measured = [run for run in pruned if figure in run.figures]
        drawn = [run for run in measured if math.isfinite(run.figures[figure])]
        if len(drawn) < 2:
            continue
        spots = _spots(drawn, figure, numbers)
        level = dense.figures.get(figure, math.nan) if dense else math.nan
        name = figure.removeprefix(PERPLEXITY)
        yield CostChart(
            name,
            wide=_draw(spots, level, name, WIDE, "wide"),
            narrow=_draw(spots, level, name, NARROW, "narrow"),
            numbered=len(spots) > NAMED,
            repeated=any(len(spot.runs) > 1 for spot in spots),
            left_out=tuple(
                f"{run.label} ({number(run.figures[figure])})"
                for run in measured
                if run not in drawn
            ),
        )


def frontier(spots: Sequence[Spot]) -> list[Spot]:
    """The settings that no other beats in time and perplexity, from the quickest on."""
    found: list[Spot] = []
    for spot in sorted(spots, key=lambda spot: spot.middle):
        if not found or spot.middle[1] < found[-1].middle[1]:
            found.append(spot)
    return found


def _spots(runs: Sequence[RunResult], figure: str, numbers: Mapping[str, int]) -> list[Spot]:
    points: dict[str, list[Point]] = {}
    for run in runs:
        points.setdefault(run.setting, []).append((run.seconds, run.figures[figure]))
    return [Spot(label, numbers[label], tuple(found)) for label, found in points.items()]


def _draw(
    spots: Sequence[Spot], dense: float, name: str, size: tuple[float, float], class_: str
) -> Markup:
    width, height = size
    points = [point for spot in spots for point in spot.runs]
    levels = [y for _, y in points] + ([dense] if math.isfinite(dense) else [])
    across = Axis.around([x for x, _ in points], 52.0, width - 16.0, margin=0.1)
    up = Axis.around(levels, height - 42.0, 28.0)

    def places(of: Sequence[Point]) -> list[Point]:
        return [(across.place(x), up.place(y)) for x, y in of]

    best = frontier(spots)
    middles = places([spot.middle for spot in spots])
    inner = Box(across.start, up.end - 8, across.end, up.start)
    titles = ("time of pruning", "perplexity (lower is better)")
    ticks = (across.time_ticks(), up.ticks())
    labels = place_labels(middles, [_name(spot, len(spots)) for spot in spots], inner)
    return picture(
        width,
        height,
        _in_words(spots, dense, name),
        frame(across, up, titles, ticks, across_said=short_duration),
        *(_dense_line(across, up.place(dense), dense) if math.isfinite(dense) else ()),
        line(_stairs(places([spot.middle for spot in best])), "stairs"),
        *(dots(places(spot.runs), "repeat") for spot in spots if len(spot.runs) > 1),
        *(part for label in labels for part in _label(label)),
        *(_mark(place, spot in best) for place, spot in zip(middles, spots, strict=True)),
        class_=class_,
    )


def _name(spot: Spot, spots: int) -> str:
    if spots > NAMED:
        return str(spot.number)
    return spot.label if len(spot.label) <= 28 else f"{spot.label[:27]}…"


def _label(label: Label) -> Iterator[Markup]:
    if label.lead:
        yield line(label.lead, "lead")
    yield text(label.box.left, label.box.bottom - 3, label.said, "label")


def _mark(place: Point, best: bool) -> Markup:
    x, y = place
    if best:
        diamond = f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"
        return element("path", d=diamond, class_="best")
    return element("circle", cx=x, cy=y, r=4, class_="other")


def _stairs(places: Sequence[Point]) -> list[Point]:
    """Level from each point until the next one, which is better, takes over."""
    corners = [(later[0], earlier[1]) for earlier, later in itertools.pairwise(places)]
    stairs = [point for pair in zip(places, corners, strict=False) for point in pair]
    return [*stairs, *places[-1:]]


def _dense_line(across: Axis, y: float, dense: float) -> tuple[Markup, Markup]:
    said = f"dense: {number(dense)}"
    return (
        line([(across.start, y), (across.end, y)], "dense"),
        text(across.end, y - 5, said, "soft", anchor="end"),
    )


def _in_words(spots: Sequence[Spot], dense: float, name: str) -> str:
    told = [
        f"{spot.label} {number(spot.middle[1])} after {duration(spot.middle[0])}" for spot in spots
    ]
    if math.isfinite(dense):
        told.insert(0, f"dense {number(dense)}")
    return f"Perplexity on {name} against the time of pruning: {'; '.join(told)}."
