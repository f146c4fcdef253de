"""A window of decoder layers, as a permutation learner sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from permllm.components import Pruner
from permllm.core.patterns import Pattern
from permllm.models.decoder import Decoder
from permllm.models.linears import Group

StepCallback = Callable[[int, int, dict[str, float]], None]
ProgressCallback = Callable[[str, int, int], None]


@attrs.define(eq=False)
class Window:
    """Consecutive decoder layers whose permutations are learned together.

    Sequences are named by their rows in ``tokens``. Weights and scores have the
    orientation ``[C_out, C_in]``, with input channels in their original order.

    Attributes:
        index: 0 for the first window.
        layers: the decoder layers that it covers.
        decoder: the dense model.
        device: where the window computes.
        tokens: ``LongTensor[n, L]``, all calibration sequences.
        calibration: how many sequences the calibration asked for: one pass.
        learning: rows that may be learned from, the calibration's first.
        held_out: rows that must not be learned from, for selection.
        pruned_inputs: ``[n, L, H]``, what enters the window from the pruned layers
            before it; None for the first window, whose inputs are embedded anew.
        dense_inputs: the same from the dense layers.
        groups: the permutation groups of these layers, by name.
        patterns: the N:M of each group.
        all_scores: the scores of each linear.
        all_statistics: the statistics of each group.
        seed: for everything random.
        batch_size: sequences per forward pass where no gradient is needed.
        pruners: who prunes each linear.
    """

    index: int
    layers: range
    decoder: Decoder
    device: torch.device
    tokens: Tensor
    calibration: int
    learning: Tensor
    held_out: Tensor
    pruned_inputs: Tensor | None
    dense_inputs: Tensor | None
    groups: Mapping[str, Group]
    patterns: Mapping[str, Pattern]
    all_scores: Mapping[str, Tensor]
    all_statistics: Mapping[str, Mapping[str, Tensor]]
    seed: int
    batch_size: int
    pruners: Mapping[str, Pruner] = attrs.field(factory=dict)
    on_step: StepCallback = lambda step, total, figures: None
    on_progress: ProgressCallback = lambda stage, done, total: None
    _targets: dict[int, Tensor] = attrs.field(factory=dict, init=False)

    @property
    def name(self) -> str:
        """Such as ``layers 0 to 29``."""
        return span(self.layers)

    @property
    def reaches_head(self) -> bool:
        """Whether the window ends at the last decoder layer, so that logits can be had."""
        return self.layers.stop == len(self.decoder.layers)

    @property
    def linears(self) -> list[str]:
        """The linears of all groups, group by group."""
        return [linear for group in self.groups.values() for linear in group.linears]

    def linears_of(self, pruner: Pruner) -> list[str]:
        """The linears that ``pruner`` prunes, and those of which nothing is said."""
        return [name for name in self.linears if self.pruners.get(name, pruner) == pruner]

    def pattern(self, group: str) -> Pattern:
        """The N:M of a group."""
        return self.patterns[group]

    def weight(self, linear: str) -> Tensor:
        """The dense weight ``[C_out, C_in]`` on the window's device."""
        return self.decoder.weight(linear).to(self.device)

    def scores(self, linear: str) -> Tensor:
        """The scores ``[C_out, C_in]`` of a linear on the window's device."""
        return self.all_scores[linear].to(self.device)

    def group_scores(self, group: str) -> Tensor:
        """The scores of all linears of a group, stacked: ``[ΣC_out, C_in]``."""
        return torch.cat([self.scores(linear) for linear in self.groups[group].linears])

    def statistics(self, group: str) -> Mapping[str, Tensor]:
        """The statistics of a group's inputs, by name."""
        return self.all_statistics[group]

    def outputs(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Hidden states at the window's end under replaced weights.

        Args:
            weights: by linear, ``[C_out, C_in]``; gradients flow back to them.
            rows: ``LongTensor[b]``.

        Returns:
            ``[b, L, H]``.
        """
        return self._run(self.pruned_inputs, rows, weights)

    def targets(self, rows: Tensor) -> Tensor:
        """The dense model's hidden states ``[b, L, H]`` at the window's end.

        Computed once per sequence and kept.
        """
        missing = torch.tensor([row for row in rows.tolist() if row not in self._targets])
        with torch.no_grad():
            for part in missing.split(self.batch_size) if len(missing) else ():
                hidden = self._run(self.dense_inputs, part, {})
                self._targets.update(zip(part.tolist(), hidden, strict=True))
        return torch.stack([self._targets[row] for row in rows.tolist()])

    def logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """The model's logits ``[b, L, V]`` for hidden states at the last layer's end."""
        return self.decoder.head(hidden, self.tokens[rows].to(self.device))

    def target_logits(self, rows: Tensor) -> Tensor:
        """The dense model's logits ``[b, L, V]``."""
        with torch.no_grad():
            return self.logits(self.targets(rows), rows)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` units of ``stage`` are done."""
        self.on_progress(f"{stage}, {self.name}", done, total)

    def training_step(self, step: int, total: int, figures: dict[str, float]) -> None:
        """Say that training step ``step`` of ``total`` is done, with its figures."""
        self.on_step(step, total, figures)

    def _run(self, inputs: Tensor | None, rows: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        calls = self.decoder.embed(self.tokens[rows].to(self.device))
        hidden = calls.hidden if inputs is None else inputs[rows].to(self.device)
        for layer in self.layers:
            hidden = self.decoder.run_layer(layer, hidden, calls, weights)
        return hidden


def span(layers: range) -> str:
    """``layer 3`` or ``layers 0 to 29``."""
    first, last = layers.start, layers.stop - 1
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def cut_windows(layers: int, size: int | str) -> list[range]:
    """The layers cut into windows of ``size`` (``"all"`` for one window)."""
    if size == "all":
        return [range(layers)]
    step = int(size)
    return [range(start, min(start + step, layers)) for start in range(0, layers, step)]
