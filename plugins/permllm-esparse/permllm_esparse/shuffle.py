"""E-Sparse's channel shuffle: deal the channels out, then swap them within blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
import torch
from torch import Tensor

from permllm.components import PermutationLearner, option
from permllm.core.patterns import Pattern
from permllm.core.permutations import block_sizes, identity
from permllm.core.retained import channelwise, retained_by_rows
from permllm.core.swaps import swap_search
from permllm.errors import UserError

if TYPE_CHECKING:
    from permllm.contexts.window import Window


@attrs.frozen
class ESparseShuffle(PermutationLearner):
    """A global naive shuffle and a local block shuffle, after E-Sparse (arXiv 2310.15929).

    The two steps, and that the second is greedy, are the paper's; what each does is a
    guess. The channels, sorted by mean score, are dealt out to the groups of M, so that
    neighbours in rank do not compete with each other. Then, in each block of channels on
    its own, channels are swapped between groups, the best swap first, until none helps.

    A permutation group takes ``C_out · C_in · block`` comparisons for the gains of all
    swaps, and about as many to follow them, and memory for three tables of
    ``block × block``. The retained score is never below that of the original order.
    Nothing is random.
    """

    name: ClassVar[str] = "esparse-shuffle"
    only_scores: ClassVar[bool] = True
    seconds_per_group: ClassVar[float] = 0.4
    """What a group takes, about: for estimates."""

    deal: bool = option(
        True, help="deal the channels out first (global naive shuffle); false swaps only"
    )
    block: int = option(
        256,
        help="channels of a block within which swaps are made (local block shuffle)",
        minimum=2,
        maximum=1_000_000,
    )
    swaps: int = option(
        10_000, help="the most swaps in each block; 0 deals only", minimum=0, maximum=10_000_000
    )

    def learn(self, window: Window) -> dict[str, Tensor]:
        """The shuffled order of each group, from its linears' stacked scores."""
        permutations: dict[str, Tensor] = {}
        for done, group in enumerate(window.groups):
            window.progress(self.name, done, len(window.groups))
            scores, pattern = window.group_scores(group), window.pattern(group)
            permutations[group] = self.shuffle(scores, pattern).cpu()
        window.progress(self.name, len(permutations), len(permutations))
        return permutations

    def shuffle(self, scores: Tensor, pattern: Pattern) -> Tensor:
        """The order of the channels of one permutation group.

        Args:
            scores: ``[C_out, C_in]``, finite and not negative.
            pattern: N:M with M dividing C_in.

        Returns:
            ``LongTensor[C_in]`` on the scores' device. Its retained score is never below
            that of the original order.

        Raises:
            UserError: a block does not hold two groups of M, so that nothing can be swapped.
        """
        if self.swaps and self.block < 2 * pattern.m:
            raise UserError(
                f"esparse-shuffle swaps channels between groups of {pattern.m} (pattern "
                f"{pattern}), and a block of {self.block} channels holds fewer than two",
                hint=f"set block to {2 * pattern.m} or more, or swaps to 0",
            )
        scores = channelwise(scores)
        order = identity(scores.shape[1]).to(scores.device)
        if self.deal:
            order = better_order(scores, pattern, order, naive_shuffle(scores, pattern))
        if self.swaps:
            order = block_shuffle(scores, pattern, order, block=self.block, swaps=self.swaps)
        return order


def naive_shuffle(scores: Tensor, pattern: Pattern) -> Tensor:
    """Global naive shuffle: the channels by falling mean score, dealt out like cards.

    Group ``g`` gets the channels of the ranks ``g, g + G, g + 2G, …`` of G groups. RIA's
    allocation (:func:`permllm.core.search.heuristic_permutation`) deals every second round in
    reverse.

    Args:
        scores: ``[C_out, C_in]``.
        pattern: N:M with M dividing C_in.

    Returns:
        ``LongTensor[C_in]`` on the scores' device.
    """
    groups = pattern.groups(scores.shape[1])
    # Their sums rank the channels as their means do.
    ranked = scores.sum(0, dtype=torch.float64).argsort(descending=True, stable=True)
    return ranked.view(pattern.m, groups).T.reshape(-1)


def block_shuffle(
    scores: Tensor, pattern: Pattern, order: Tensor, *, block: int, swaps: int
) -> Tensor:
    """Local block shuffle: greedy swaps between the groups of each block of an order.

    Args:
        scores: ``[C_out, C_in]``, finite and not negative.
        pattern: N:M with M dividing C_in.
        order: ``LongTensor[C_in]``.
        block: channels of a block, rounded down to a multiple of M (at least M).
        swaps: the most swaps in each block.

    Returns:
        ``LongTensor[C_in]``: ``order`` with its entries moved within blocks. Its
        retained score is never below that of ``order``.
    """
    unused = torch.Generator()  # Only escapes are random, and there are none.
    found = []
    for some in order.split(block_sizes(len(order), block, pattern.m)):
        local = swap_search(scores[:, some], pattern, generator=unused, swaps=swaps)
        found.append(some[local])
    return torch.cat(found)


def better_order(scores: Tensor, pattern: Pattern, known: Tensor, other: Tensor) -> Tensor:
    """The order that retains more of ``[C_out, C_in]``; ``known`` where both retain the same."""
    retained = [retained_by_rows(scores.T, pattern, order) for order in (known, other)]
    return other if retained[1] > retained[0] else known
