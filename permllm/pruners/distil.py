"""Distillation: prunes as another pruner does, then trains what is left."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import attrs
import torch
from torch import Tensor

from permllm.components import Pruner
from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.patterns import Pattern, kept
from permllm.core.statistics import Statistic
from permllm.option import option
from permllm.pruners.mask import Mask
from permllm.training.loop import Step, Trainee
from permllm.training.options import TrainingOptions

if TYPE_CHECKING:
    from permllm.contexts.window import Window

RATE = 0.007
"""The learning rate over the root mean square of what was cut."""


@attrs.frozen
class Distil(TrainingOptions, Pruner):
    """Prunes as another pruner does, then trains the kept weights against the dense model.

    All kept weights of a window train together (Adam), so that the window gives what the
    dense one gives; what is cut stays zero. Only calibration text is seen. Costs about as
    much time per step as the bare forward and backward pass, and four numbers of memory for
    each weight.
    """

    name: ClassVar[str] = "distil"

    mask: Pruner = option(factory=Mask, help="pruner that says what is kept")
    batch: int = option(2, help="sequences per training step", minimum=1, maximum=4096)
    learning_rate: float | None = option(  # type: ignore[assignment]
        None,
        help="learning rate at the first step; by default a share of the root mean square of what "
        "was cut, so that it suits large weights and small, and patterns that cut little",
        minimum=0,
    )
    weight_decay: float = option(
        0.0, help="decoupled decay of the kept weights towards zero", minimum=0
    )

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """What the pruner that says what is kept needs."""
        return self.mask.needs

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        """As the pruner that says what is kept."""
        return self.mask.sequential

    @property
    def refines_first(self) -> bool:  # type: ignore[override]
        """As the pruner that says what is kept."""
        return self.mask.refines_first

    def cost(self, workload: Workload) -> ComponentCost:
        """Of the training, whose gradients are those of all weights of a window."""
        weights = workload.window * sum(c_out * c_in for c_out, c_in in workload.linears)
        return ComponentCost(gradients=round(4 * weights)) + super().cost(workload)

    def sequences(self, calibration: int) -> int:
        """As many as training or the other pruner wants."""
        return max(super().sequences(calibration), self.mask.sequences(calibration))

    def refine(self, window: Window, permutations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The other pruner's scores, for the linears that are this one's."""
        theirs = {name: self.mask if one == self else one for name, one in window.pruners.items()}
        return self.mask.refine(attrs.evolve(window, pruners=theirs), permutations)

    def prune(
        self, weight: Tensor, scores: Tensor, pattern: Pattern, statistics: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The other pruner's weight and mask."""
        return self.mask.prune(weight, scores, pattern, statistics)

    def update(self, window: Window, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The kept weights after training.

        Raises:
            RunFailed: the loss is not finite.
        """
        rate = self.learning_rate
        if rate is None:
            rate = RATE * size_of_cut(window, weights, window.linears_of(self))
        options = attrs.evolve(self, learning_rate=rate)
        return options.train(KeptWeights(self, window, weights), window)


def size_of_cut(window: Window, weights: Mapping[str, Tensor], linears: Iterable[str]) -> float:
    """The root mean square of what pruning has changed of the dense weights.

    Args:
        window: has the dense weights.
        weights: ``[C_out, C_in]`` of every pruned linear.
        linears: those that count.
    """
    squares, count = 0.0, 0
    for linear in linears:
        dense = window.weight(linear)
        cut = dense.float() - weights[linear].to(dense.device).float()
        squares += cut.pow(2).sum().item()
        count += cut.numel()
    return math.sqrt(squares / max(1, count))


class KeptWeights(Trainee[dict[str, Tensor]]):
    """The weights that are kept, in float32; what is cut has no gradient.

    Args:
        options: the pruner.
        window: what is trained through.
        weights: ``[C_out, C_in]`` of every pruned linear of the window; those of other
            pruners take part and stay as they are.
    """

    resumable: ClassVar[bool] = True

    def __init__(self, options: Distil, window: Window, weights: Mapping[str, Tensor]) -> None:
        self.given = {name: weight.to(window.device) for name, weight in weights.items()}
        self.trained = {
            name: self.given[name].to(torch.float32, copy=True).requires_grad_()
            for name in window.linears_of(options)
        }
        for weight in self.trained.values():
            # Adam leaves alone what never had a gradient: what is cut stays zero.
            weight.register_hook(partial(kept, mask=weight.detach() != 0))
        self.optimiser = torch.optim.AdamW(
            self.trained.values(),
            # Budgets are short: what was averaged over the last ten steps lags behind.
            betas=(0.6, 0.95),
            weight_decay=options.weight_decay,
            fused=True,
        )

    def weights(self, at: Step) -> dict[str, Tensor]:
        """All weights in the model's dtype."""
        trained = {name: x.to(self.given[name].dtype) for name, x in self.trained.items()}
        return {**self.given, **trained}

    def result(self, at: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The trained weights as they are, and all of them."""
        weights = self.weights(at)
        return {name: weights[name].clone() for name in self.trained}, weights
