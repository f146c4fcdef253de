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
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from torch import Tensor

from permllm.components import PermutationLearner
from permllm.core.sinkhorn import sinkhorn
from permllm.option import option
from permllm.permutations.cp import Cp
from permllm.permutations.groupwise import first_orders
from permllm.training.blocks import (
    BlockedGroup,
    block_counts,
    harden,
    masked_weights,
    orders,
)
from permllm.training.loop import linear_between
from permllm.training.optimisers import BlockAdam
from permllm.training.options import TrainingOptions

if TYPE_CHECKING:
    from permllm.contexts.window import Window


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

    def learn(self, window: Window) -> dict[str, Tensor]:
        """One permutation per group, trained through the window.

        Raises:
            RunFailed: the loss is not finite.
        """
        count = self.count(window)
        starts = first_orders(self.start, window, count.seconds)
        training = Training(self, window, starts)
        return self.train(training, window, count)


class Training:
    """The state of one window's training: the logits and their optimiser.

    Args:
        options: the learner.
        window: what is trained through.
        starts: for each group the order that its blocks are cut from.
    """

    def __init__(self, options: Lcp, window: Window, starts: Mapping[str, Tensor]) -> None:
        self.options, self.window = options, window
        self.loss = options.window_loss(window)
        self.groups = groups = [
            BlockedGroup.of(
                window,
                name,
                permutation,
                block=options.block,
                normalise_scores=options.normalise_scores,
                dtype=self.loss.dtype,
            )
            for name, permutation in starts.items()
        ]
        self.total = options.training_steps(window.calibration)
        self.logits = first_logits(options, groups, window.seed, window.device)
        self.scales = first_scales(groups, window.device) if options.scaled else {}
        if options.scaled:
            with torch.no_grad():
                for size, x in self.logits.items():
                    x /= math.sqrt(size)
        trained = [*self.logits.values(), *self.scales.values()]
        self.optimiser: torch.optim.Optimizer
        if options.optimiser == "adamw":
            self.optimiser = torch.optim.AdamW(
                trained, lr=options.learning_rate, weight_decay=options.weight_decay
            )
        elif options.optimiser == "adam":
            self.optimiser = torch.optim.Adam(trained, lr=options.learning_rate)
        else:
            self.optimiser = BlockAdam(trained, lr=options.learning_rate, opening=options.opening)

    def temperature(self, step: int) -> float:
        """Linear from start to end; ``step`` counts from 1."""
        options = self.options
        return linear_between(options.temperature_start, options.temperature_end, step, self.total)

    def step(self, rows: Tensor, step: int) -> dict[str, float]:
        """One training step on the learning sequences ``rows``; returns its figures."""
        rate = self.options.learning_rate_at(step, self.total)
        for settings in self.optimiser.param_groups:
            settings["lr"] = rate
        soft = self.soft(step)
        weights = self.masked_weights(soft, harden(soft))
        loss = self.loss(weights, rows)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {
            "loss": loss.item(),
            "temperature": self.temperature(step),
            "learning_rate": rate,
        }

    def soft(self, step: int) -> dict[int, Tensor]:
        """Soft permutations ``[ΣG, B, B]`` per block size, stacked over the groups."""
        temperature, rounds = self.temperature(step), self.options.sinkhorn_rounds
        return {size: sinkhorn(self.scaled(size), temperature, rounds) for size in self.logits}

    def scaled(self, size: int) -> Tensor:
        """The logits of blocks of one size, times their groups' scales where those train."""
        if size not in self.scales:
            return self.logits[size]
        counts = [dict(group.runs)[size] for group in self.groups if size in dict(group.runs)]
        repeats = torch.tensor(counts, device=self.scales[size].device)
        logits = self.logits[size] * self.scales[size].repeat_interleave(repeats).view(-1, 1, 1)
        # The published code clamps the value and leaves the gradient alone.
        return logits + (logits.clamp(-1, 1) - logits).detach()

    def masked_weights(
        self, soft: dict[int, Tensor], local: dict[int, Tensor]
    ) -> dict[str, Tensor]:
        """The pruned weights of all groups."""
        return masked_weights(self.groups, soft, local, soft_mask=self.options.gradient == "soft")

    @torch.no_grad()
    def snapshot(self, step: int) -> tuple[dict[str, Tensor], float]:
        """The hard permutations as they are at ``step``, and their held-out loss.

        The loss is NaN where there are no held-out sequences.
        """
        soft = self.soft(step)
        local = harden(soft)
        weights = self.masked_weights(soft, local)
        return orders(self.groups, local), self.loss.held_out(weights, self.options.batch)


def first_logits(
    options: Lcp, groups: list[BlockedGroup], seed: int, device: torch.device
) -> dict[int, Tensor]:
    """Trainable logits ``[ΣG, B, B]`` per block size B: a lean towards identity, and noise."""
    generator = torch.Generator().manual_seed(seed)
    logits = {}
    for size, count in block_counts(groups).items():
        noise = 2 * torch.rand(count, size, size, generator=generator) - 1
        first = options.identity * torch.eye(size) + options.noise * noise
        logits[size] = first.to(device).requires_grad_()
    return logits


def first_scales(groups: list[BlockedGroup], device: torch.device) -> dict[int, Tensor]:
    """One trainable scale per group and block size B, ``√B`` at first: ``[groups]`` per B."""
    counts = Counter(size for group in groups for size, _ in group.runs)
    return {
        size: torch.full((count,), math.sqrt(size), device=device, requires_grad=True)
        for size, count in counts.items()
    }
