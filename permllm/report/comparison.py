"""Runs compared: which run another is measured against, and how much of a gap it closes."""

from __future__ import annotations

import math
from typing import Any

import attrs

from permllm.results import Results, RunResult

PERPLEXITY = "perplexity/"
"""Figures with this prefix are perplexities, which the comparison is about."""

PERMUTATION = "layers.permutation"
"""The matrix key whose value tells the orders of channels apart."""

UNCHANGED = "none"
"""The permutation, and the label, of a run that leaves channels in their order."""

DENSE = "dense"


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


def perplexities(results: Results) -> list[str]:
    """The names of the perplexity figures, in the order measured."""
    return [name for name in figure_names(results) if name.startswith(PERPLEXITY)]


def figure_names(results: Results) -> list[str]:
    """The names of all figures of all runs, in the order measured."""
    return list(dict.fromkeys(name for run in results.runs for name in run.figures))


def dense_run(results: Results) -> RunResult | None:
    """The dense model's run."""
    return next((run for run in results.runs if run.label == DENSE), None)


def reference(results: Results, run: RunResult) -> RunResult | None:
    """The run without a permutation that is otherwise like ``run``, or None.

    Without a matrix over permutations, it is the run with the label ``none``.
    """
    others = _other_options(run)
    for candidate in results.runs:
        order = candidate.options.get(PERMUTATION)
        if order is not None and name_of(order) == UNCHANGED:
            if _other_options(candidate) == others and PERMUTATION in run.options:
                return candidate
        elif order is None and candidate.label == UNCHANGED and PERMUTATION not in run.options:
            return candidate
    return None


def gap(results: Results, run: RunResult, figure: str) -> Gap | None:
    """The gap of a run in one perplexity; None where a side of the comparison is missing.

    The dense run and the runs that are references have none of their own.
    """
    dense, without = dense_run(results), reference(results, run)
    if dense is None or without is None or run in (dense, without):
        return None
    if any(figure not in side.figures for side in (dense, without, run)):
        return None
    return Gap(figure, dense.figures[figure], without.figures[figure], run.figures[figure])


def name_of(value: Any) -> str:
    """The component's name in a matrix value, bare or with options."""
    return str(value.get("name", "")) if isinstance(value, dict) else str(value)


def _other_options(run: RunResult) -> dict[str, Any]:
    return {key: value for key, value in run.options.items() if key != PERMUTATION}
