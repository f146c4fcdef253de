"""Perplexity against the time that pruning took."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

import attrs
from markupsafe import Markup

from permllm.reporting import (
    COLOURS,
    GREY,
    PERPLEXITY,
    dense_run,
    duration,
    number,
    perplexities,
)
from permllm.results import Results, RunResult
from permllm_report.inline import inline
from permllm_report.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]

NAMED = 12
"""More settings than these are numbered as in the table."""

SHAPES = {"wide": (10.5, 5.5), "narrow": (4.9, 6.0)}
"""Sizes in inches for two kinds of screens; letters have one size in both."""

LOGARITHMIC = 8.0
"""Positive values that differ by this factor get a logarithmic axis."""

NICE_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600,
                7200, 18000, 36000, 86400, 172800, 432000, 864000)  # fmt: skip
"""Durations that people count in."""

LINE = 14.0
"""How far apart labels are."""

LONGEST = 28
"""Characters of a label beside its mark."""


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
        return fmean(x for x, _ in self.runs), fmean(y for _, y in self.runs)


@attrs.frozen
class CostChart:
    """One perplexity's chart.

    Attributes:
        figure: the perplexity's name.
        pictures: the same chart in two shapes.
        numbered: whether points have the numbers of the table in place of labels.
        left_out: what has no place in it, with its perplexity.
    """

    figure: str
    pictures: tuple[Markup, ...]
    numbered: bool
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
        words = _in_words(spots, level, name)
        yield CostChart(
            name,
            pictures=tuple(
                inline(partial(cost_figure, spots, level, size), f"{figure} {shape}", words, shape)
                for shape, size in SHAPES.items()
            ),
            numbered=len(spots) > NAMED,
            left_out=tuple(
                f"{run.label} ({number(run.figures[figure])})"
                for run in measured
                if run not in drawn
            ),
        )


def frontier(spots: Sequence[Spot]) -> list[Spot]:
    """The settings that no other beats in time and perplexity, from the quickest on."""
    best: list[Spot] = []
    for spot in sorted(spots, key=lambda spot: spot.middle):
        if not best or spot.middle[1] < best[-1].middle[1]:
            best.append(spot)
    return best


def cost_figure(spots: Sequence[Spot], dense: float, size: tuple[float, float]) -> Figure:
    """A mark for each setting, with small ones for its repeats."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    _draw_marks(axes, spots)
    if math.isfinite(dense):
        axes.axhline(dense, color=GREY, linestyle="--", label=f"dense: {number(dense)}")
    axes.margins(0.1)
    axes.set(xlabel="time of pruning", ylabel="perplexity (lower is better)")
    _scale(axes, spots, dense)
    figure.legend(loc="outside upper left", ncols=2 if size == SHAPES["wide"] else 1)
    # Labels go by where the marks are, and move nothing.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    _label(axes, spots)
    return figure


def _draw_marks(axes: Axes, spots: Sequence[Spot]) -> None:
    """What nothing beats are diamonds, with a line that shows what more time buys."""
    best = frontier(spots)
    middles = [spot.middle for spot in best]
    repeats = [point for spot in spots if len(spot.runs) > 1 for point in spot.runs]
    others = [spot.middle for spot in spots if spot not in best]
    axes.step(*zip(*middles, strict=True), where="post", color=COLOURS[1], linestyle=":")
    ring = {"color": COLOURS[0], "markerfacecolor": LIGHT.page, "markeredgewidth": 2}
    for points, label, style in (
        (repeats, "a repeat; marks are means", {"marker": ".", "color": COLOURS[0]}),
        (others, "the others", {"marker": "o", **ring}),
        (middles, "no other is both quicker and better", {"marker": "D", "color": COLOURS[1]}),
    ):
        if points:
            axes.plot(*zip(*points, strict=True), linestyle="", label=label, zorder=3, **style)


def _scale(axes: Axes, spots: Sequence[Spot], dense: float) -> None:
    """Axes that tell apart values of different sizes, and few ticks."""
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

    points = [point for spot in spots for point in spot.runs]
    levels = [level for level in (*(y for _, y in points), dense) if math.isfinite(level)]
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 3, 6, 10]))
    if _far_apart(levels):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    if _far_apart([x for x, _ in points]):
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        nice = [seconds for seconds in NICE_SECONDS if low <= seconds <= high]
        axes.xaxis.set_major_locator(FixedLocator(nice[:: len(nice) // 6 + 1]))
    axes.yaxis.set_major_formatter("{x:.6g}")
    axes.xaxis.set_major_formatter(lambda seconds, _: _short(seconds))
    axes.minorticks_off()


def _far_apart(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= LOGARITHMIC


def _short(seconds: float) -> str:
    """A round duration: ``2 min`` rather than ``2 min 0 s``."""
    return re.sub(r"\.0(?= s)| 0 (s|min)$", "", duration(seconds))


def _label(axes: Axes, spots: Sequence[Spot]) -> None:
    """Names beside the marks, one above another where they would meet."""
    places = axes.transData.transform([spot.middle for spot in spots]) * 72 / axes.figure.dpi
    middle = axes.transAxes.transform((0.6, 0))[0] * 72 / axes.figure.dpi
    lowest = {1: -math.inf, -1: -math.inf}
    for (x, y), spot in sorted(zip(places, spots, strict=True), key=lambda at: at[0][1]):
        crowded = any(0 < right - x < 4 * LINE and abs(up - y) < LINE for right, up in places)
        side = -1 if crowded or x > middle else 1
        level = max(y, lowest[side])
        lowest[side] = level + LINE
        text = _cropped(spot.label) if len(spots) <= NAMED else str(spot.number)
        axes.annotate(text, spot.middle, (9 * side, level - y), textcoords="offset points",
                      ha="left" if side > 0 else "right", va="center", zorder=2.5)  # fmt: skip


def _cropped(label: str) -> str:
    """A label, or as much of its beginning as there is room for, and ``…``."""
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"


def _spots(runs: Sequence[RunResult], figure: str, numbers: Mapping[str, int]) -> list[Spot]:
    points: dict[str, list[Point]] = {}
    for run in runs:
        points.setdefault(run.setting, []).append((run.seconds, run.figures[figure]))
    return [Spot(label, numbers[label], tuple(repeats)) for label, repeats in points.items()]


def _in_words(spots: Sequence[Spot], dense: float, name: str) -> str:
    parts = [
        f"{spot.label} {number(spot.middle[1])} after {duration(spot.middle[0])}" for spot in spots
    ]
    if math.isfinite(dense):
        parts.insert(0, f"dense {number(dense)}")
    return f"Perplexity on {name} against the time of pruning: {'; '.join(parts)}."
