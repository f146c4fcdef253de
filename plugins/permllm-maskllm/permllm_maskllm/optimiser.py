"""AdamW that keeps no gradients: each tensor is updated as soon as its gradient is there."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

PART = 2**20
"""Numbers that are updated at once, so that temporaries stay small."""


@attrs.define(eq=False)
class Moments:
    """The running averages of one tensor's gradient, and how many it has seen."""

    first: Tensor
    second: Tensor
    steps: int = 0


class AdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) within the backward pass.

    Gradients of all logits would take as much memory as the logits; here the gradient of
    one tensor is freed before that of the next is made. A tensor without a gradient stays
    as it is.

    Args:
        tensors: leaves that need gradients; ``backward`` changes them.
        betas: of the two averages.
        epsilon: what is added to the root of the second.
        weight_decay: decoupled.
        dtype: of the averages.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor],
        *,
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(tensors, {"lr": 0.0})
        self.betas, self.epsilon, self.weight_decay = betas, epsilon, weight_decay
        for tensor in self.param_groups[0]["params"]:
            moments = Moments(
                torch.zeros_like(tensor, dtype=dtype), torch.zeros_like(tensor, dtype=dtype)
            )
            tensor.register_post_accumulate_grad_hook(partial(self._update, moments))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing: what has a gradient moved within the backward pass."""

    @property
    def learning_rate(self) -> float:
        """The rate of the next backward pass: ``param_groups[0]["lr"]``."""
        return float(self.param_groups[0]["lr"])

    @torch.no_grad()
    def _update(self, moments: Moments, tensor: Tensor) -> None:
        gradient, tensor.grad = tensor.grad, None
        assert gradient is not None
        moments.steps += 1
        parts = [
            whole.flatten().split(PART)
            for whole in (tensor, gradient, moments.first, moments.second)
        ]
        for values, slope, first, second in zip(*parts, strict=True):
            self._update_part(values, slope, first, second, moments.steps)

    def _update_part(
        self, values: Tensor, gradient: Tensor, first: Tensor, second: Tensor, steps: int
    ) -> None:
        mean_beta, square_beta = self.betas
        # Wide copies where the averages are kept narrow, else the averages themselves.
        mean, square = first.to(values.dtype), second.to(values.dtype)
        mean.lerp_(gradient, 1 - mean_beta)
        square.mul_(square_beta).addcmul_(gradient, gradient, value=1 - square_beta)
        first.copy_(mean)
        second.copy_(square)
        root = (square / (1 - square_beta**steps)).sqrt_().add_(self.epsilon)
        values.mul_(1 - self.learning_rate * self.weight_decay)
        values.addcdiv_(mean, root, value=-self.learning_rate / (1 - mean_beta**steps))
