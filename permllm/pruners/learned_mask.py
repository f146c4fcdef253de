"""Masks that are learned through the pruned model, of weights that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import attrs
import torch
from torch import Tensor

from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.patterns import Pattern, kept, nm_mask
from permllm.core.permutations import invert
from permllm.core.soft_mask import softly_masked
from permllm.option import option
from permllm.pruners.mask import Mask
from permllm.training.loop import Step, Trainee
from permllm.training.options import TrainingOptions

if TYPE_CHECKING:
    from permllm.contexts.window import Window

LOGIT_BYTES = 16
"""For each weight: its logit, the logit's gradient and Adam's two averages."""


@attrs.frozen
class LearnedMask(TrainingOptions, Mask):
    """Learns which N of every M weights to keep, through the pruned model.

    Every weight has a logit, at first its score over the mean of its group's. A step goes
    through the window under a soft mask, which keeps N of every M in sum, at a low and
    falling temperature; the N highest logits are the mask in the end. Weights stay as they
    are, and channels in their order, which may be a learned one.
    """

    name: ClassVar[str] = "learned-mask"

    learning_rate: float = option(0.005, help="learning rate at the first step", minimum=0)
    temperature_start: float = option(
        0.05, help="temperature of the soft mask at the first step", minimum=1e-3
    )
    temperature_end: float = option(
        0.01, help="temperature of the soft mask at the last step; linear between", minimum=1e-3
    )

    def cost(self, workload: Workload) -> ComponentCost:
        """Of the training; and of the logits, with all that learns them."""
        weights = round(workload.window * sum(c_out * c_in for c_out, c_in in workload.linears))
        logits = ComponentCost(bytes=LOGIT_BYTES * weights, gradients=4 * weights)
        return logits + super().cost(workload)

    def refine(self, window: Window, permutations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of 1 for what the learned masks keep and of 0 for the rest.

        Linears that other pruners prune take part with the mask of their scores.

        Raises:
            RunFailed: the loss is not finite.
        """
        masks = self.train(Masks(self, window, permutations), window)
        return {linear: mask.float() for linear, mask in masks.items()}


@attrs.frozen(eq=False)
class Place:
    """In what order and pattern the mask of a linear is made.

    Attributes:
        permutation: ``LongTensor[C_in]``.
        pattern: N:M.
    """

    permutation: Tensor
    pattern: Pattern

    def mask(self, logits: Tensor) -> Tensor:
        """The hard mask of logits ``[C_out, C_in]`` in permuted order, in original order."""
        return nm_mask(logits, self.pattern).index_select(1, invert(self.permutation))


class Masks(Trainee[dict[str, Tensor]]):
    """The logits of all masks of a window, ``[C_out, C_in]`` in permuted order.

    Args:
        options: the pruner.
        window: what is trained through.
        permutations: the order of each group, which stays as it is.
    """

    resumable: ClassVar[bool] = True

    def __init__(
        self, options: LearnedMask, window: Window, permutations: Mapping[str, Tensor]
    ) -> None:
        self.options, self.window = options, window
        self.others: dict[str, Tensor] = {}
        self.places: dict[str, Place] = {}
        self.logits: dict[str, Tensor] = {}
        own = window.linears_of(options)
        for name, group in window.groups.items():
            permutation = permutations[name].to(window.device)
            place = Place(permutation, window.pattern(name))
            for linear in group.linears:
                scores = window.scores(linear).index_select(1, permutation)
                if linear in own:
                    self.places[linear] = place
                    self.logits[linear] = first_logits(scores, place.pattern).requires_grad_()
                else:
                    self.others[linear] = kept(window.weight(linear), place.mask(scores))
        self.optimiser = torch.optim.AdamW(
            self.logits.values(),
            lr=options.learning_rate,
            betas=(0.9, 0.95),
            eps=1e-12,
            weight_decay=0.0,
            fused=True,
        )

    def temperature(self, at: Step) -> float:
        """τ, linear from start to end."""
        return at.between(self.options.temperature_start, self.options.temperature_end)

    def weights(self, at: Step) -> dict[str, Tensor]:
        """The weights under soft masks."""
        return self.others | {
            linear: softly_masked(
                logits,
                self.window.weight(linear),
                self.places[linear].permutation,
                self.places[linear].pattern,
                self.temperature(at),
            )
            for linear, logits in self.logits.items()
        }

    def result(self, at: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The hard masks, and the weights under them."""
        masks = {linear: self.places[linear].mask(one) for linear, one in self.logits.items()}
        weights = {linear: kept(self.window.weight(linear), mask) for linear, mask in masks.items()}
        return masks, self.others | weights

    def figures(self, at: Step) -> dict[str, float]:
        """The temperature."""
        return {"temperature": self.temperature(at)}


def first_logits(scores: Tensor, pattern: Pattern) -> Tensor:
    """Scores in units of their group's mean, in float32 or better.

    Args:
        scores: ``[C_out, C_in]``, non-negative, in permuted order.
        pattern: N:M.

    Returns:
        ``[C_out, C_in]``, 1 in the mean of every M; zero where all scores of a group are.
    """
    grouped = scores.unflatten(1, (-1, pattern.m))
    return (grouped / grouped.mean(2, keepdim=True).clamp_min(1e-30)).flatten(1)
