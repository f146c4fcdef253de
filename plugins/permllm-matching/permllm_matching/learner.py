"""Learnable permutation by bipartite matching (Li et al., AAAI 2026, arXiv 2601.22980).

Each permutation group has a learnable cost of every channel at every place, in blocks.
A step goes

    cost → normalised cost → soft matching → N:M mask in permuted order
         → pruned weights → window → task loss + distillation after every layer,

and the order that comes out is the permutation of least cost. Only the costs learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from torch import Tensor

from permllm.components import PermutationLearner, option
from permllm.permutations.cp import Cp
from permllm.permutations.groupwise import first_orders
from permllm.training.blocks import BlockedGroup, block_counts, masked_weights, orders, unstacked
from permllm.training.loop import linear_between
from permllm.training.losses import WindowLoss
from permllm.training.options import TrainingOptions
from permllm_matching.distillation import DISTANCES, DistilledLoss
from permllm_matching.relaxed import relaxed_masked_weight
from permllm_matching.solver import match, soft_match

if TYPE_CHECKING:
    from permllm.contexts.window import Window


@attrs.frozen
class Matching(TrainingOptions, PermutationLearner):
    """Learns the cost of every channel at every place, and takes the cheapest order.

    A block that does not divide the channels: all blocks have ``block`` channels
    (rounded down to a multiple of M), and the last has what is left.
    """

    name: ClassVar[str] = "matching"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "blocks": 4,
            "forward": "soft",
            "normalise": True,
            "learning_rate": 1e-4,
            "weight_decay": 0.01,
            "passes": 20,
            "precision": "model",
            "start": "none",
            "loss": "next-token",
            "distance": "smooth-l1",
            "distillation": 1e-5,
            "fresh": False,
            "select": "last",
        }
    }

    block: int = option(64, help="channels per block B of the permutation", minimum=2)
    blocks: int | None = option(
        None, help="blocks per permutation group, in place of block", minimum=1
    )
    forward: str = option(
        "hard",
        help="what a training step runs: the cheapest order (hard), with the soft one in its "
        "gradient only, or the soft one itself (soft), as the paper does",
        choices=("hard", "soft"),
    )
    temperature_start: float = option(
        1.0, help="the matching's temperature at the first step", minimum=1e-3
    )
    temperature_end: float = option(
        0.1, help="the matching's temperature at the last step; linear between", minimum=1e-3
    )
    sinkhorn_rounds: int = option(
        20, help="the most iterations of a soft matching", minimum=1, maximum=10_000
    )
    tolerance: float = option(
        0.01, help="iterations end once all rows sum to 1 within this", minimum=0
    )
    normalise: bool = option(False, help="scale each block's costs to a standard deviation of 1")
    identity: float = option(0.2, help="how much less a channel's own place costs at first")
    noise: float = option(
        0.01, help="half width of the uniform noise on the first costs", minimum=0
    )
    weight_decay: float = option(0.0, help="decoupled weight decay of the costs", minimum=0)
    start: PermutationLearner = option(
        factory=Cp, help="learner whose order the blocks are cut from"
    )
    distance: str = option(
        "cosine",
        help="distillation: distance of the hidden states after each layer to the dense model's",
        choices=tuple(DISTANCES),
    )
    distillation: float = option(
        0.0, help="weight of the distances' sum over the layers, next to the task loss", minimum=0
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
    """The state of one window's training: the costs and their optimiser.

    Args:
        options: the learner.
        window: what is trained through.
        starts: for each group the order that its blocks are cut from.
    """

    def __init__(self, options: Matching, window: Window, starts: Mapping[str, Tensor]) -> None:
        self.options, self.window = options, window
        self.total = options.training_steps(window.calibration)
        self.groups = [
            BlockedGroup.of(
                window, name, start, block=block_size(options, len(start)), normalise_scores=True
            )
            for name, start in starts.items()
        ]
        self.costs = first_costs(options, self.groups, window.seed, window.device)
        self.prices: dict[int, Tensor] = {}
        self.optimiser = torch.optim.AdamW(
            self.costs.values(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.loss = window_loss(options, window)

    def temperature(self, step: int) -> float:
        """Linear from start to end; ``step`` counts from 1."""
        options = self.options
        return linear_between(options.temperature_start, options.temperature_end, step, self.total)

    def step(self, rows: Tensor, step: int) -> dict[str, float]:
        """One training step on the learning sequences ``rows``; returns its figures."""
        rate = self.options.learning_rate_at(step, self.total)
        for settings in self.optimiser.param_groups:
            settings["lr"] = rate
        loss = self.loss(self.weights(step), rows)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {
            "loss": loss.item(),
            "temperature": self.temperature(step),
            "learning_rate": rate,
        }

    def cost(self) -> dict[int, Tensor]:
        """The costs ``[ΣG, B, B]`` per block size, normalised where that is wanted."""
        if not self.options.normalise:
            return dict(self.costs)
        return {size: normalised(cost) for size, cost in self.costs.items()}

    def weights(self, step: int) -> dict[str, Tensor]:
        """The pruned weights of all groups, differentiable with respect to the costs."""
        cost = self.cost()
        soft = self.soft(cost, step)
        if self.options.forward == "soft":
            return relaxed_weights(self.groups, soft)
        return masked_weights(self.groups, soft, matched(cost))

    def soft(self, cost: Mapping[int, Tensor], step: int) -> dict[int, Tensor]:
        """Soft permutations ``[ΣG, B, B]`` per block size; each begins at the last one's prices."""
        soft = {}
        for size, each in cost.items():
            soft[size], self.prices[size] = soft_match(
                each,
                self.temperature(step),
                rounds=self.options.sinkhorn_rounds,
                tolerance=self.options.tolerance,
                prices=self.prices.get(size),
            )
        return soft

    @torch.no_grad()
    def snapshot(self, step: int) -> tuple[dict[str, Tensor], float]:
        """The orders of least cost as they are, and their held-out loss.

        The loss is NaN where there are no held-out sequences.
        """
        local = matched(self.cost())
        # Without gradient nothing but the shapes of the soft permutations is read.
        weights = masked_weights(self.groups, self.costs, local)
        return orders(self.groups, local), self.loss.held_out(weights, self.options.batch)


def block_size(options: Matching, channels: int) -> int:
    """Channels per block of a group with ``channels``."""
    return options.block if options.blocks is None else -(-channels // options.blocks)


def first_costs(
    options: Matching, groups: list[BlockedGroup], seed: int, device: torch.device
) -> dict[int, Tensor]:
    """Trainable costs ``[ΣG, B, B]`` per block size B: the own place is cheaper, and noise."""
    generator = torch.Generator().manual_seed(seed)
    costs = {}
    for size, count in block_counts(groups).items():
        noise = 2 * torch.rand(count, size, size, generator=generator) - 1
        first = options.noise * noise - options.identity * torch.eye(size)
        costs[size] = first.to(device).requires_grad_()
    return costs


def normalised(cost: Tensor) -> Tensor:
    """Costs ``[G, B, B]`` with mean 0 and standard deviation 1 in each block.

    The temperature then says by itself how soft a matching is, however large the costs grow.
    """
    centred = cost - cost.mean((-2, -1), keepdim=True)
    return centred / centred.square().mean((-2, -1), keepdim=True).sqrt().clamp_min(1e-12)


def matched(cost: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The permutations of least cost, as ``LongTensor[ΣG, B]`` per block size."""
    return {size: match(each) for size, each in cost.items()}


def relaxed_weights(groups: list[BlockedGroup], soft: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The pruned weights ``[C_out, C_in]`` of all groups under soft permutations."""
    return {
        linear: relaxed_masked_weight(
            weight, group.scores[linear], pieces, group.start, group.pattern
        ).T
        for group, pieces in zip(groups, unstacked(groups, soft), strict=True)
        for linear, weight in group.weights.items()
    }


def window_loss(options: Matching, window: Window) -> WindowLoss:
    """The task loss, with distillation where that has weight."""
    task = options.window_loss(window)
    if not options.distillation:
        return task
    return DistilledLoss.after_layers(task, DISTANCES[options.distance], options.distillation)
