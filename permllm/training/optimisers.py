"""Adam for parameters that come in blocks, of which most hear little and noisily."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_EPSILON = 1e-30
"""Added to roots: gradients may be as small as they like, since only ratios count."""


class BlockAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, 2015) whose second moment is half an element's and half its block's.

    Adam divides every element's step by the size of its own gradient, so that a logit
    whose gradient is mere noise moves as far as one that matters. Here the divisor is

        √(½ · v(element) + ½ · mean of v over the block),

    so that what matters more in a block moves further, and at most √2 times as far as in Adam.

    The first steps share more: in step t of the opening the divisor is

        √(w · mean of v over all blocks + (1 - w) · (as above)),    w = 1 - (t - 1) / opening,

    so that the first step goes along the gradient itself, and spends itself on what matters
    most. A second moment of one or two gradients cannot tell signal from noise in a single
    element; the sizes of all of them can.

    Args:
        parameters: ``[K, …]`` each, K blocks.
        lr: learning rate; ``param_groups[…]["lr"]`` may be changed between steps.
        betas: decay of the first and of the second moment.
        opening: steps until no more is shared than within blocks.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        opening: int = 8,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "opening": opening})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient. ``closure`` is not called."""
        for settings in self.param_groups:
            first, second = settings["betas"]
            for parameter in settings["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["mean"] = torch.zeros_like(parameter)
                    state["square"] = torch.zeros_like(parameter)
                state["step"] += 1
                mean = state["mean"].lerp_(parameter.grad, 1 - first)
                square = state["square"].lerp_(parameter.grad.square(), 1 - second)
                blocks = square.mean(tuple(range(1, square.dim())), keepdim=True)
                divisor = (square + blocks) / 2
                if state["step"] <= settings["opening"]:
                    divisor.lerp_(square.mean(), 1 - (state["step"] - 1) / settings["opening"])
                size = (divisor / (1 - second ** state["step"])).sqrt_()
                step = mean / (1 - first ** state["step"]) / size.add_(_EPSILON)
                parameter.sub_(step, alpha=settings["lr"])
