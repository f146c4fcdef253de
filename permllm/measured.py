"""What one run measured, and what a comparison of several needs to know of them."""

from __future__ import annotations

from typing import Any, Protocol

import attrs

DENSE = "dense"
"""The label of the unpruned model's run, which no other run may have."""


@attrs.frozen
class Cost:
    """What a stage took when it was computed, be it now or by an earlier run.

    Attributes:
        seconds: wall time.
        peak_memory_bytes: the most that the process had, beside what is mapped from files.
    """

    seconds: float = 0.0
    peak_memory_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        """One after the other: the times add up, the higher peak counts."""
        peak = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return Cost(self.seconds + other.seconds, peak)


@attrs.frozen
class LayerReport:
    """Figures of one pruned linear.

    Attributes:
        linear: the module's name (with ``[i]`` for expert i of stacked weights).
        group: the permutation group that it belongs to.
        shape: ``(C_out, C_in)``.
        pattern: such as ``"2:4"``.
        retained_before: share of the summed scores kept by the pattern in the
            original channel order, 0 to 1.
        retained: the same in the learned order.
        sparsity: share of zeros in the pruned weight, 0 to 1.
        error: ``‖(W - W') X‖² / ‖W X‖²`` on the calibration inputs, from the inputs'
            square sums (off-diagonal terms are left out).
    """

    linear: str
    group: str
    shape: tuple[int, int]
    pattern: str
    retained_before: float
    retained: float
    sparsity: float
    error: float


@attrs.frozen
class RunResult:
    """What one run (one cell of the matrix, or the dense model) measured.

    Attributes:
        label: ``"dense"``, or the matrix values that tell this run apart.
        figures: the evaluators' figures by name, and ``retained`` and ``sparsity``.
        seconds: wall time of pruning, without evaluation and export.
        peak_memory_bytes: the most that the process had, beside what is mapped from files.
        exports: folder of each export, relative to the pipeline's run folder.
        layers: one report per pruned linear, in order of execution.
        options: every dotted key that the matrix sets in some run, with this run's value.
        setting: the label that all repeats of one setting share; the label itself
            where nothing is repeated.
        repeat: which repeat of its setting it is, from 0.
        error: what broke the run; its other figures are then empty. None if it finished.
    """

    label: str
    figures: dict[str, float]
    seconds: float
    peak_memory_bytes: int
    exports: dict[str, str] = attrs.field(factory=dict)
    layers: tuple[LayerReport, ...] = ()
    options: dict[str, Any] = attrs.field(factory=dict)
    setting: str = ""
    repeat: int = 0
    error: str | None = None

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "setting", self.setting or self.label)


class Measured(Protocol):
    """What all runs of a pipeline measured: :class:`permllm.results.Results`."""

    @property
    def runs(self) -> tuple[RunResult, ...]:
        """The dense model's first."""
        ...
