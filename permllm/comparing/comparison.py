"""Runs compared: which run another is measured against, and how much of a gap it closes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs

from permllm.comparing.repeats import Paired, Setting, Spread, paired, settings, spread
from permllm.measured import DENSE, Measured, RunResult

PERPLEXITY = "perplexity/"
"""Figures with this prefix are perplexities, which the comparison is about."""

PERMUTATION = "layers.permutation"
"""The matrix key whose value tells the orders of channels apart."""

UNCHANGED = "none"
"""The permutation of a run that leaves channels in their order."""


@attrs.frozen
class Gap:
    """The perplexity that pruning costs, and what is left of it under a learned order.

    Attributes:
        figure: the perplexity's name, such as ``perplexity/python-docs``.
        dense: of the dense model.
        unordered: of the model that is pruned in the original channel order.
        ordered: of the run.
    """

    figure: str
    dense: float
    unordered: float
    ordered: float

    @property
    def closed(self) -> float | None:
        """The closed share of the gap, negative if it grew; None if pruning opened none."""
        opened = self.unordered - self.dense
        if not opened > 0 or not math.isfinite(opened) or math.isnan(self.ordered):
            return None
        return (self.unordered - self.ordered) / opened


@attrs.frozen
class Gaps:
    """The gaps of a setting, one of each repeat that has one.

    Attributes:
        each: they, at least one.
    """

    each: tuple[Gap, ...]

    @property
    def dense(self) -> float:
        """The dense model's perplexity, which all repeats share."""
        return self.each[0].dense

    @property
    def unordered(self) -> Spread:
        """The perplexities in the original channel order."""
        return _spread(gap.unordered for gap in self.each)

    @property
    def ordered(self) -> Spread:
        """The perplexities of the repeats."""
        return _spread(gap.ordered for gap in self.each)

    @property
    def closed(self) -> Spread | None:
        """The repeats' closed shares; None if there was no gap in any of them."""
        return spread(gap.closed for gap in self.each if gap.closed is not None)


def perplexities(results: Measured) -> list[str]:
    """The names of the perplexity figures, in the order measured."""
    return [name for name in figure_names(results) if name.startswith(PERPLEXITY)]


def figure_names(results: Measured) -> list[str]:
    """The names of all figures of all runs, in the order measured."""
    return list(dict.fromkeys(name for run in results.runs for name in run.figures))


def dense_run(results: Measured) -> RunResult | None:
    """The dense model's run."""
    return next((run for run in results.runs if run.label == DENSE), None)


def reference(results: Measured, run: RunResult) -> RunResult | None:
    """The run without a permutation that is otherwise like ``run``, or None.

    Repeats are compared with the same repeat.
    """
    others = _other_options(run)
    for candidate in results.runs:
        if candidate.repeat != run.repeat:
            continue
        unordered = name_of(candidate.options.get(PERMUTATION)) == UNCHANGED
        if unordered and _other_options(candidate) == others and PERMUTATION in run.options:
            return candidate
    return None


def rival(results: Measured, setting: Setting) -> Setting | None:
    """The setting that another is compared with, or None for one that is a rival itself.

    It is the one without a permutation that is otherwise alike or, where there is none,
    the first one of pruned models.
    """
    if setting.label == DENSE:
        return None
    own = next(iter((*setting.runs, *setting.failed)))
    without = reference(results, own)
    for other in settings(results):
        chosen = other.runs if without is None else other.label == without.setting
        if other.label != DENSE and chosen:
            return None if other.label == own.setting else other
    return None


def difference(results: Measured, setting: Setting, figure: str) -> Paired | None:
    """How a setting differs from its rival; None where there is none or no pair of repeats."""
    other = rival(results, setting)
    return None if other is None else paired(setting, other, figure)


def gap(results: Measured, run: RunResult, figure: str) -> Gap | None:
    """The gap of a run in one perplexity; None where a side of the comparison is missing.

    The dense run and the runs that are references have none of their own.
    """
    dense, without = dense_run(results), reference(results, run)
    if dense is None or without is None or run in (dense, without):
        return None
    if any(figure not in side.figures for side in (dense, without, run)):
        return None
    return Gap(figure, dense.figures[figure], without.figures[figure], run.figures[figure])


def gaps(results: Measured, setting: Setting, figure: str) -> Gaps | None:
    """The gaps of a setting's repeats in one perplexity; None if none has one."""
    each = [one for run in setting.runs if (one := gap(results, run, figure))]
    return Gaps(tuple(each)) if each else None


def name_of(value: Any) -> str:
    """The component's name in a matrix value, bare or with options."""
    return str(value.get("name", "")) if isinstance(value, dict) else str(value)


def _other_options(run: RunResult) -> dict[str, Any]:
    """What was set besides the permutation and its options."""
    below = f"{PERMUTATION}."
    return {
        key: value
        for key, value in run.options.items()
        if key != PERMUTATION and not key.startswith(below)
    }


def _spread(values: Iterable[float]) -> Spread:
    over = spread(values)
    assert over is not None
    return over
