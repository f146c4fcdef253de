"""Learnable permutation by bipartite matching (Li et al., AAAI 2026, arXiv 2601.22980).

Each permutation group has a learnable cost of every channel at every place, in blocks.
A step goes

    cost → normalised cost → soft matching → N:M mask in permuted order
         → pruned weights → window → task loss + distillation after every layer,

and the order that comes out is the permutation of least cost. Only the costs learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from torch import Tensor

from permllm.components import PermutationLearner, option
from permllm.permutations.cp import Cp
from permllm.training.blocks import BlockedGroup, BlockedGroups, Blocks
from permllm.training.budget import first_permutations
from permllm.training.loop import Step, Trainee
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
        starts = first_permutations(self.start, window, count.seconds)
        return self.train(LearnedCosts(self, window, starts), window, count)

    def window_loss(self, window: Window) -> WindowLoss:
        """The task loss, with distillation where that has weight."""
        task = super().window_loss(window)
        if not self.distillation:
            return task
        return DistilledLoss.after_layers(task, DISTANCES[self.distance], self.distillation)

    def block_size(self, channels: int) -> int:
        """Channels per block of a group with ``channels``."""
        return self.block if self.blocks is None else -(-channels // self.blocks)


class LearnedCosts(Trainee[dict[str, Tensor]]):
    """The costs of every channel at every place of its block.

    Args:
        options: the learner.
        window: what is trained through.
        starts: for each group the order that its blocks are cut from.
    """

    def __init__(self, options: Matching, window: Window, starts: Mapping[str, Tensor]) -> None:
        self.options = options
        self.groups = BlockedGroups.cut(window, starts, options.block_size, normalise_scores=True)
        self.costs = first_costs(options, self.groups, window.seed, window.device)
        self.prices: dict[int, Tensor] = {}
        self.optimiser = torch.optim.AdamW(
            self.costs.tensors, lr=options.learning_rate, weight_decay=options.weight_decay
        )

    def temperature(self, at: Step) -> float:
        """ε, linear from start to end."""
        return at.between(self.options.temperature_start, self.options.temperature_end)

    def cost(self) -> Blocks:
        """The costs ``[ΣG, B, B]``, normalised where that is wanted."""
        return self.costs.map(normalised) if self.options.normalise else self.costs

    def weights(self, at: Step) -> Mapping[str, Tensor]:
        """The pruned weights of all groups, differentiable with respect to the costs."""
        cost = self.cost()
        soft = self.soft(cost, at)
        if self.options.forward == "soft":
            return relaxed_weights(self.groups, soft)
        return self.groups.masked_weights(soft, cost.map(match))

    def soft(self, cost: Blocks, at: Step) -> Blocks:
        """Soft permutations ``[ΣG, B, B]``; each begins at the last one's prices."""
        soft = {}
        for size, each in cost.by_size.items():
            soft[size], self.prices[size] = soft_match(
                each,
                self.temperature(at),
                rounds=self.options.sinkhorn_rounds,
                tolerance=self.options.tolerance,
                prices=self.prices.get(size),
            )
        return Blocks(soft)

    def result(self, at: Step) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """The permutations of least cost as they are, and the weights under them."""
        hard = self.cost().map(match)
        # Without gradient nothing but the shapes of the soft permutations is read.
        weights = self.groups.masked_weights(self.costs, hard)
        return self.groups.permutations(hard), weights

    def figures(self, at: Step) -> dict[str, float]:
        """The temperature."""
        return {"temperature": self.temperature(at)}


def first_costs(
    options: Matching, groups: BlockedGroups, seed: int, device: torch.device
) -> Blocks:
    """Trainable costs ``[ΣG, B, B]``: the own place is cheaper, and noise."""
    generator = torch.Generator().manual_seed(seed)

    def first(count: int, size: int) -> Tensor:
        noise = 2 * torch.rand(count, size, size, generator=generator) - 1
        return options.noise * noise - options.identity * torch.eye(size)

    return groups.blocks(first).map(lambda costs: costs.to(device).requires_grad_())


def normalised(cost: Tensor) -> Tensor:
    """Costs ``[G, B, B]`` with mean 0 and standard deviation 1 in each block.

    The temperature then says by itself how soft a matching is, however large the costs grow.
    """
    centred = cost - cost.mean((-2, -1), keepdim=True)
    return centred / centred.square().mean((-2, -1), keepdim=True).sqrt().clamp_min(1e-12)


def relaxed_weights(groups: BlockedGroups, soft: Blocks) -> Mapping[str, Tensor]:
    """The pruned weights ``[C_out, C_in]`` of all groups under soft permutations."""

    def make(group: BlockedGroup, linear: str, pieces: Sequence[Tensor]) -> Tensor:
        weight, scores = group.weights[linear], group.scores[linear]
        return relaxed_masked_weight(weight, scores, pieces, group.start, group.pattern).T

    return groups.made(soft, make)
