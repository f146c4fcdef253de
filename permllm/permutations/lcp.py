"""Learnable channel permutation (PermLLM, arXiv 2510.10136, section 3).

Each permutation group has learnable logits in blocks. A step goes

    logits → Sinkhorn → soft permutation → assignment → hard permutation
           → N:M mask in permuted order → pruned weights → window → loss,

forward with the hard permutation and mask, backward with the soft permutation and, in
place of a soft mask, what each placement would change. Only the logits learn. What
differs from the published code is said in the options; the preset ``paper`` gives its
settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from torch import Tensor

from permllm.components import PermutationLearner
from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.remade import in_pieces
from permllm.core.sinkhorn import sinkhorn
from permllm.option import option
from permllm.permutations.cp import Cp
from permllm.training.blocks import BlockedGroups, Blocks, harden
from permllm.training.budget import first_permutations
from permllm.training.loop import Step, Trainee
from permllm.training.optimisers import BlockAdam
from permllm.training.options import TrainingOptions

if TYPE_CHECKING:
    from permllm.contexts.window import Window


LOGIT_BYTES = 32
"""For each logit: itself, Adam's averages, its gradient, and soft permutations with theirs."""


@attrs.frozen
class Lcp(TrainingOptions, PermutationLearner):
    """Learns the order through the pruned model (PermLLM's LCP).

    A block that does not divide the channels: all blocks have ``block`` channels
    (rounded down to a multiple of M), and the last has what is left.
    """

    name: ClassVar[str] = "lcp"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "block": 64,
            "sinkhorn_rounds": 5,
            "temperature_start": 1.0,
            "temperature_end": 0.1,
            "identity": 0.0,
            "noise": 1.0,
            "scaled": True,
            "normalise_scores": False,
            "gradient": "soft",
            "optimiser": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "schedule": "cosine",
            "passes": 50,
            "batch": 16,
            "precision": "model",
            "start": "none",
            "loss": "cosine",
            "fresh": False,
            "select": "last",
        }
    }

    learning_rate: float = option(0.01, help="learning rate at the first step", minimum=0)
    block: int = option(64, help="channels per block B of the permutation", minimum=2)
    sinkhorn_rounds: int = option(
        5, help="rounds of row and column normalisation", minimum=1, maximum=100
    )
    temperature_start: float = option(
        1.0, help="Sinkhorn's temperature at the first step", minimum=1e-3
    )
    temperature_end: float = option(
        0.1, help="Sinkhorn's temperature at the last step; linear between", minimum=1e-3
    )
    identity: float = option(0.05, help="first logit of a channel's own place, over the others")
    noise: float = option(
        0.01, help="half width of the uniform noise on the first logits", minimum=0
    )
    scaled: bool = option(
        False,
        help="train the logits as blocks times one scale per group (√B at first), "
        "and clamp them to [-1, 1], as the published code does",
    )
    normalise_scores: bool = option(
        True, help="divide each linear's scores by their mean before the soft mask"
    )
    gradient: str = option(
        "placement",
        help="what a place gets of the loss's gradient: what would change if a channel took it "
        "(placement), or what comes through a softmax over each group of M (soft), as in the paper",
        choices=("placement", "soft"),
    )
    optimiser: str = option(
        "block-adam",
        help="optimiser of the logits; block-adam is Adam with half of the second moment "
        "shared in a block",
        choices=("block-adam", "adam", "adamw"),
    )
    opening: int = option(
        8,
        help="first steps in which block-adam shares its second moment among all blocks, "
        "less and less",
        minimum=0,
        maximum=1_000_000,
    )
    weight_decay: float = option(0.0, help="decoupled weight decay, for adamw", minimum=0)
    start: PermutationLearner = option(
        factory=Cp, help="learner whose order the blocks are cut from"
    )

    def cost(self, workload: Workload) -> ComponentCost:
        """Of the training and what it starts from; and of the logits, with all that learns them."""
        widths = [c_in for _, c_in in workload.linears]
        channels = workload.window * workload.groups * sum(widths) / max(1, len(widths))
        count = self.block * channels
        logits = ComponentCost(bytes=round(LOGIT_BYTES * count), gradients=round(4 * count))
        return logits + super().cost(workload)

    def learn(self, window: Window) -> dict[str, Tensor]:
        """One permutation per group, trained through the window.

        Raises:
            RunFailed: the loss is not finite.
        """
        count = self.count(window)
        starts = first_permutations(self.start, window, count.seconds)
        return self.train(LearnedPermutations(self, window, starts), window, count)

    def optimiser_of(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The optimiser of the logits, and of their scales where those train."""
        if self.optimiser == "adamw":
            return torch.optim.AdamW(
                parameters, lr=self.learning_rate, weight_decay=self.weight_decay
            )
        if self.optimiser == "adam":
            return torch.optim.Adam(parameters, lr=self.learning_rate)
        return BlockAdam(parameters, lr=self.learning_rate, opening=self.opening)


class LearnedPermutations(Trainee[dict[str, Tensor]]):
    """The method (PermLLM, section 3): logits ``Z`` of each block, and what becomes of them.

    Args:
        options: the learner.
        window: what is trained through.
        starts: for each group the order that its blocks are cut from.
    """

    resumable: ClassVar[bool] = True

    def __init__(self, options: Lcp, window: Window, starts: Mapping[str, Tensor]) -> None:
        self.options, self.world = options, window.world
        self.groups = BlockedGroups.cut(
            window,
            starts,
            lambda channels: options.block,
            normalise_scores=options.normalise_scores,
            dtype=options.window_loss(window).dtype,
        )
        self.logits = first_logits(options, self.groups, window.seed, window.device)
        self.scales = first_scales(self.groups, window.device) if options.scaled else None
        scales = self.scales.tensors if self.scales else []
        self.optimiser = options.optimiser_of([*self.logits.tensors, *scales])

    def temperature(self, at: Step) -> float:
        """τ, linear from start to end."""
        return at.between(self.options.temperature_start, self.options.temperature_end)

    def soft(self, at: Step) -> Blocks:
        """``P̃ = Sinkhorn(Z / τ)``: soft permutations ``[ΣG, B, B]`` (section 3.1)."""
        rounds = self.options.sinkhorn_rounds
        soften = partial(sinkhorn, temperature=self.temperature(at), rounds=rounds)
        return self.scaled().map(partial(in_pieces, soften) if self.groups.streamed else soften)

    def scaled(self) -> Blocks:
        """``Z``, of the published code ``clamp(scale · Z, -1, 1)`` with a scale per group.

        That clamps the value and leaves the gradient alone.
        """
        if self.scales is None:
            return self.logits
        scaled = self.logits.map(torch.mul, self.groups.repeated(self.scales))
        return scaled.map(lambda logits: logits + (logits.clamp(-1, 1) - logits).detach())

    def weights(self, at: Step) -> Mapping[str, Tensor]:
        """``W' = W ⊙ top(S P̂) P̂ᵀ`` with ``P̂ = argmax ⟨P, P̃⟩`` (sections 3.1 and 3.2).

        Backward takes ``P̃`` for ``P̂``, and a softmax over each group of M, or the placement
        gradient, for ``top``.
        """
        soft = self.soft(at)
        return self.masked(soft, harden(soft, self.world))

    def result(self, at: Step) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """The hard permutations as they are, and the weights under them."""
        soft = self.soft(at)
        hard = harden(soft, self.world)
        return self.groups.permutations(hard), self.masked(soft, hard)

    def masked(self, soft: Blocks, hard: Blocks) -> Mapping[str, Tensor]:
        """The pruned weights of all groups, with the gradient that the options name."""
        soft_mask = self.options.gradient == "soft"
        return self.groups.masked_weights(soft, hard, soft_mask=soft_mask)

    def figures(self, at: Step) -> dict[str, float]:
        """The temperature."""
        return {"temperature": self.temperature(at)}


def first_logits(options: Lcp, groups: BlockedGroups, seed: int, device: torch.device) -> Blocks:
    """Trainable logits ``[ΣG, B, B]``: a lean towards identity, and noise.

    With scales they are divided by the ``√B`` that these begin with.
    """
    generator = torch.Generator().manual_seed(seed)

    def first(count: int, size: int) -> Tensor:
        noise = 2 * torch.rand(count, size, size, generator=generator) - 1
        logits = options.identity * torch.eye(size) + options.noise * noise
        return logits.div_(math.sqrt(size)) if options.scaled else logits

    return groups.blocks(first).map(lambda logits: logits.to(device).requires_grad_())


def first_scales(groups: BlockedGroups, device: torch.device) -> Blocks:
    """One trainable scale per group, for its blocks of size B ``√B`` at first: ``[groups]``."""
    return groups.per_group(
        lambda count, size: torch.full((count,), math.sqrt(size), device=device, requires_grad=True)
    )
