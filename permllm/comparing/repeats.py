"""Repeats of one setting: their spread, and how two settings differ repeat by repeat."""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

from permllm.measured import Measured, RunResult


@attrs.frozen
class Spread:
    """A figure over the repeats of a setting.

    Attributes:
        mean: over the repeats.
        deviation: their standard deviation with n - 1 degrees of freedom; None for one.
        count: how many repeats have the figure.
    """

    mean: float
    deviation: float | None
    count: int


@attrs.frozen
class Setting:
    """One setting: the runs that differ in nothing but their seeds.

    Attributes:
        label: what its runs have in common.
        runs: the repeats that finished, in order.
        failed: those that broke.
    """

    label: str
    runs: tuple[RunResult, ...]
    failed: tuple[RunResult, ...] = ()

    @property
    def count(self) -> int:
        """How many repeats were asked for."""
        return len(self.runs) + len(self.failed)

    @property
    def every(self) -> tuple[RunResult, ...]:
        """All of its runs, in the order of their repeats."""
        return tuple(sorted((*self.runs, *self.failed), key=lambda run: run.repeat))

    def spread(self, figure: str) -> Spread | None:
        """A figure over the repeats that have it; None if none has."""
        return spread(run.figures[figure] for run in self.runs if figure in run.figures)


@attrs.frozen
class Paired:
    """How a setting differs from another one, by pairs of repeats with the same seeds.

    Attributes:
        mean: of the differences, this setting less the other.
        error: the standard error of that mean; None for one pair.
        lower, higher: in how many pairs this setting has the lower or the higher figure.
        count: the number of pairs.
    """

    mean: float
    error: float | None
    lower: int
    higher: int
    count: int


def settings(results: Measured) -> list[Setting]:
    """The settings of a pipeline in the order of their first runs, the dense model's first."""
    runs: dict[str, list[RunResult]] = {}
    for run in results.runs:
        runs.setdefault(run.setting, []).append(run)
    return [setting_of(label, same) for label, same in runs.items()]


def setting_of(label: str, runs: Iterable[RunResult]) -> Setting:
    """The setting of some runs, of which some may have failed."""
    runs = list(runs)
    finished = tuple(run for run in runs if run.error is None)
    return Setting(label, finished, tuple(run for run in runs if run.error is not None))


def repeated(results: Measured) -> bool:
    """Whether anything was run more than once."""
    return any(run.repeat > 0 for run in results.runs)


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and standard deviation of some values; None if there are none."""
    values = list(values)
    if not values:
        return None
    mean = _mean(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    squares = [(value - mean) * (value - mean) for value in values]
    return Spread(mean, math.sqrt(_sum(squares) / (len(values) - 1)), len(values))


def paired(setting: Setting, other: Setting, figure: str) -> Paired | None:
    """The difference of two settings in a figure; None if no repeats can be paired."""
    others = {run.repeat: run.figures.get(figure) for run in other.runs}
    pairs = [
        (run.figures[figure], theirs)
        for run in setting.runs
        if figure in run.figures and (theirs := others.get(run.repeat)) is not None
    ]
    differences = spread(ours - theirs for ours, theirs in pairs)
    if differences is None:
        return None
    error = (
        None
        if differences.deviation is None
        else differences.deviation / math.sqrt(differences.count)
    )
    lower = sum(ours < theirs for ours, theirs in pairs)
    higher = sum(ours > theirs for ours, theirs in pairs)
    return Paired(differences.mean, error, lower, higher, differences.count)


def _mean(values: list[float]) -> float:
    return _sum(values) / len(values)


def _sum(values: list[float]) -> float:
    # The exact sum of equal values leaves no spread; it takes no opposite infinities.
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
