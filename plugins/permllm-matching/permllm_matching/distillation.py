"""The end-to-end loss: the task's, and every layer held to the dense model's (equation 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from permllm.training.losses import WindowLoss

LayerDistance = Callable[[Tensor, Tensor], Tensor]


def cosine(pruned: Tensor, dense: Tensor) -> Tensor:
    """Mean over tokens of ``1 - cos``, so that no layer and no token outweighs the others.

    Args:
        pruned, dense: hidden states ``[b, L, H]`` after one layer.
    """
    return 1 - functional.cosine_similarity(pruned, dense, dim=-1).mean()


def squared(pruned: Tensor, dense: Tensor) -> Tensor:
    """Mean over tokens of ``‖h - h'‖²`` (equation 7)."""
    return (pruned - dense).square().sum(-1).mean()


def smooth_l1(pruned: Tensor, dense: Tensor) -> Tensor:
    """Mean over tokens of the Huber-like distance, summed over channels (the paper's runs)."""
    return functional.smooth_l1_loss(pruned, dense, reduction="none").sum(-1).mean()


DISTANCES: dict[str, LayerDistance] = {
    "cosine": cosine,
    "squared": squared,
    "smooth-l1": smooth_l1,
}
"""Every distance of hidden states by its name in a pipeline file."""


@attrs.frozen(eq=False)
class DistilledLoss(WindowLoss):
    """A window's loss at its end, plus a weighted sum of distances after each layer.

    Attributes:
        per_layer: the distance of the hidden states after one layer.
        weight: of the sum over the layers, α in equation 8.
    """

    per_layer: LayerDistance = cosine
    weight: float = 0.0

    @classmethod
    def after_layers(
        cls, task: WindowLoss, per_layer: LayerDistance, weight: float
    ) -> DistilledLoss:
        """``task`` with distillation."""
        return cls(
            task.window,
            task.distance,
            task.bfloat16,
            task.recompute,
            per_layer=per_layer,
            weight=weight,
        )

    def __call__(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """A scalar; gradients flow back to the weights.

        Args:
            weights: ``[C_out, C_in]`` by linear; others keep the dense weight.
            rows: ``LongTensor[b]``, the sequences.
        """
        window = self.window
        with torch.autocast(window.device.type, torch.bfloat16, enabled=self.bfloat16):
            dense = window.layer_targets(rows)
            pruned = window.layer_outputs(weights, rows, recompute=self.recompute)
            task = self.compare(pruned[-1], rows)
        pairs = zip(pruned, dense, strict=True)
        return task + self.weight * sum(self.per_layer(p.float(), d.float()) for p, d in pairs)
