"""Tabu search among swaps of channels between the groups of an N:M mask.

Swaps that raise the retained score (Pool and Yu, "Channel permutations for N:M
sparsity", NeurIPS 2021, section 4) end where none does. Taillard's robust taboo search
("Robust taboo search for the quadratic assignment problem", Parallel Computing 17,
1991) goes on from there: every step makes the best swap, even one that loses, but for a
random number of steps no channel may go back to the group that it left.

On small problems a step costs more in calls than in arithmetic, so that several walks
from the same order go side by side and part by their random numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from permllm.core.durations import never
from permllm.core.patterns import Pattern
from permllm.core.retained import CPU_ELEMENTS, better, pairwise_max_sums, thresholds

TENURE = 15
"""The most steps for which a channel may not go back, where there are channels enough."""
WALKS = 8
"""The most walks that go side by side."""

_NEVER = torch.iinfo(torch.int32).max
_NOISE = 1e-5
"""A walk's gains have to exceed this for its order to count as better: they are rounded."""


@attrs.frozen(eq=False)
class Walks:
    """Orders that go their own ways, and what each channel would retain in each place.

    The tensors are changed in place.

    Attributes:
        pattern: N:M.
        permutations: ``LongTensor[W, C_in]``.
        scores: ``[W, C_in, C_out]``, of the channel in each place.
        worth: ``[W, C_in, C_in]``: ``worth[w, p, q]`` is what the channel in place ``q``
            would retain in place ``p``, up to a constant of the place.
        until: ``IntTensor[W, C_in, G]``: the last step in which the channel in a place
            may not go to a group.
    """

    pattern: Pattern
    permutations: Tensor
    scores: Tensor
    worth: Tensor
    until: Tensor

    @classmethod
    def of(cls, channels: Tensor, pattern: Pattern, start: Tensor, walks: int) -> Walks:
        """So many walks that start from one order; costs ``C_out · C_in²``."""
        placed = channels.index_select(0, start)
        threshold = thresholds(placed.unflatten(0, (-1, pattern.m)), pattern.n).flatten(0, 1)
        groups = torch.arange(len(start) // pattern.m, device=start.device)
        own = groups.repeat_interleave(pattern.m).unsqueeze(1) == groups
        return cls(
            pattern,
            start.repeat(walks, 1),
            placed.repeat(walks, 1, 1),
            pairwise_max_sums(threshold, placed).repeat(walks, 1, 1),
            torch.where(own, _NEVER, -1).int().repeat(walks, 1, 1),
        )

    def best_swaps(self, step: int) -> tuple[Tensor, Tensor]:
        """Each walk's best swap of those that are allowed in a step.

        Returns:
            ``[W]``, what they add to the retained score, and ``LongTensor[W, 2]``, the
            places whose channels are swapped.
        """
        own = self.worth.diagonal(dim1=1, dim2=2).unsqueeze(2)
        received = (self.worth - own).unflatten(2, (-1, self.pattern.m))
        barred = (self.until >= step).unsqueeze(3)
        received = received.masked_fill_(barred, -torch.inf).flatten(2)
        gains = received + received.mT
        # Only the maximum without its place is fast along the rows of a large table.
        place = gains.amax(2).argmax(1)
        gain, other = gains[torch.arange(len(gains), device=gains.device), place].max(1)
        return gain, torch.stack([place, other], 1)

    def swap(self, swaps: Tensor, until: Tensor) -> None:
        """Swap two channels in each walk, and bar their ways back.

        Args:
            swaps: ``LongTensor[W, 2]``, places of different groups.
            until: ``IntTensor[W]``, the last step in which they may not go back.
        """
        m, walk = self.pattern.m, torch.arange(len(swaps), device=swaps.device).unsqueeze(1)
        others, groups = swaps.flip(1), swaps // m
        barred = self.until[walk, others].scatter(2, groups.unsqueeze(2), _NEVER)
        back = groups.flip(1).unsqueeze(2)
        self.until[walk, swaps] = barred.scatter(2, back, until.view(-1, 1, 1).expand(-1, 2, 1))
        for placed in (self.permutations, self.scores, self.worth.mT):
            placed[walk, swaps] = placed[walk, others]
        members = groups.unsqueeze(2) * m + torch.arange(m, device=swaps.device)
        threshold = thresholds(self.scores[walk.unsqueeze(2), members], self.pattern.n).flatten(
            1, 2
        )
        self.worth[walk, members.flatten(1)] = _worth(threshold, self.scores)


def walks_at_once(outputs: int, channels: int, pattern: Pattern) -> int:
    """How many walks fit the cache, the same on every device."""
    return max(1, min(WALKS, CPU_ELEMENTS // (2 * pattern.m * outputs * channels)))


def step_comparisons(outputs: int, channels: int, pattern: Pattern) -> int:
    """The scores that one step of all walks compares."""
    return 2 * pattern.m * outputs * channels * walks_at_once(outputs, channels, pattern)


def tabu_search(
    channels: Tensor,
    pattern: Pattern,
    start: Tensor,
    *,
    generator: torch.Generator,
    steps: int | None,
    stop: Callable[[], bool] = never,
) -> Tensor:
    """The best order on the way of tabu walks; never one that retains less than the start.

    It takes memory for about four ``C_in × C_in`` tables in the scores' precision.

    Args:
        channels: scores ``[C_in, C_out]``, channel by channel, between 0 and 1.
        pattern: N:M.
        start: ``LongTensor[C_in]``, of two groups at least, on the channels' device.
        generator: on the CPU; the lengths of the bars are drawn from it.
        steps: how many swaps each walk makes; None for no end but that.
        stop: says whether the walks end, asked before each step.

    Returns:
        ``LongTensor[C_in]``.
    """
    size, outputs = channels.shape
    walks = Walks.of(channels, pattern, start, walks_at_once(outputs, size, pattern))
    # Bars on at most half of the channels leave a swap between any two groups.
    longest = min(TENURE, size // 4)
    reached = torch.zeros(len(walks.permutations), dtype=torch.float64, device=channels.device)
    highest, best = torch.full_like(reached, _NOISE), walks.permutations.clone()
    for step in itertools.count() if steps is None else range(steps):
        if stop():
            break
        gains, swaps = walks.best_swaps(step)
        tenure = torch.randint(longest // 3, longest + 1, (len(swaps),), generator=generator)
        walks.swap(swaps, (step + tenure).int().to(swaps.device))
        reached += gains
        higher = reached > highest
        highest = torch.where(higher, reached, highest)
        best = torch.where(higher.unsqueeze(1), walks.permutations, best)
    chosen = start
    for other in best.unbind():
        chosen = better(channels, pattern, chosen, other)
    return chosen


def _worth(threshold: Tensor, scores: Tensor) -> Tensor:
    """``[W, P, C_in]``, of thresholds ``[W, P, C_out]`` and scores ``[W, C_in, C_out]``."""
    if len(threshold) == 1:
        return pairwise_max_sums(threshold[0], scores[0]).unsqueeze(0)
    return torch.maximum(threshold.unsqueeze(2), scores.unsqueeze(1)).sum(-1)
