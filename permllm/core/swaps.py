"""Greedy channel swaps between groups of an N:M mask.

Pool and Yu, "Channel permutations for N:M sparsity" (NeurIPS 2021), section 4: swap the
two channels of different groups whose swap raises the retained score most, until none
raises it; to get out of such an optimum, disturb the order and go on from there.

The gain of every swap stands in one table, and a swap changes only the rows of the
two groups that it touches. Swaps between four different groups do not touch each
other, so a sweep makes the best swap, then the best among the groups that are left,
and so on, before the table is brought up to date.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from permllm.core.durations import never, over
from permllm.core.patterns import Pattern
from permllm.core.permutations import identity
from permllm.core.retained import (
    channelwise,
    nth_highest,
    pairwise_max_sums,
    retained_by_rows,
)

ESCAPE_SHARE = 16
"""An escape exchanges the channels of one place in so many (two at least)."""

_NOISE = 1e-6
"""Gains below this share of what a place retains are rounding errors of float32."""


@attrs.frozen(eq=False)
class SwapTable:
    """An order, and what each channel would retain in each place of it.

    Attributes:
        channels: scores ``[C_in, C_out]``, channel by channel.
        pattern: N:M.
        permutation: ``LongTensor[C_in]``, the order.
        threshold: ``[C_in, C_out]``: for every place the N-th highest score of the other
            channels of its group, in every row.
        worth: ``[C_in, C_in]``: ``worth[p, c] = Σ max(threshold[p], channels[c])``, what
            channel ``c`` retains in place ``p`` up to a constant of the place.
    """

    channels: Tensor
    pattern: Pattern
    permutation: Tensor
    threshold: Tensor
    worth: Tensor

    @classmethod
    def of(cls, channels: Tensor, pattern: Pattern, permutation: Tensor) -> SwapTable:
        """The table of an order; costs ``C_out · C_in²``."""
        threshold = _thresholds(
            channels,
            pattern,
            permutation,
            torch.arange(len(permutation), device=permutation.device),
        )
        return cls(
            channels, pattern, permutation, threshold, pairwise_max_sums(threshold, channels)
        )

    def reordered(self, permutation: Tensor) -> SwapTable:
        """The table of another order; only groups that differ are computed anew."""
        changed = (permutation != self.permutation).view(-1, self.pattern.m).any(1)
        places = changed.repeat_interleave(self.pattern.m).nonzero().squeeze(1)
        threshold, worth = self.threshold.clone(), self.worth.clone()
        threshold[places] = _thresholds(self.channels, self.pattern, permutation, places)
        worth[places] = pairwise_max_sums(threshold[places], self.channels)
        return attrs.evolve(self, permutation=permutation, threshold=threshold, worth=worth)

    def best_swaps(self, limit: int) -> Tensor:
        """The best swaps that touch no group twice, best first.

        Args:
            limit: how many at most.

        Returns:
            ``LongTensor[swaps, 2]``: pairs of places. Each raises the retained score.
        """
        m, groups = self.pattern.m, len(self.permutation) // self.pattern.m
        placed = self.worth.index_select(1, self.permutation)
        own = placed.diagonal().clone()
        received = placed - own.unsqueeze(1)
        # Of all swaps between two groups only the best can be chosen.
        pairs = (received + received.T).view(groups, m, groups, m).transpose(1, 2)
        gains, swap = pairs.reshape(groups, groups, m * m).max(2)
        gains.fill_diagonal_(0)
        floor = _NOISE * own.abs().max().item()
        chosen: list[tuple[int, int]] = []
        while len(chosen) < min(limit, groups // 2):
            best = int(gains.argmax())
            g, h = divmod(best, groups)
            if gains[g, h].item() <= floor:
                break
            p, q = divmod(int(swap[g, h]), m)
            chosen.append((g * m + p, h * m + q))
            gains[[g, h]] = 0
            gains[:, [g, h]] = 0
        swaps = torch.tensor(chosen, dtype=torch.long, device=self.permutation.device).view(-1, 2)
        return swaps[self.exact_gains(swaps) > 0]

    def exact_gains(self, swaps: Tensor) -> Tensor:
        """What each swap of ``[swaps, 2]`` places adds to the retained score, in float64."""
        gains = torch.zeros(len(swaps), dtype=torch.float64, device=swaps.device)
        for place, other in (swaps.unbind(1), swaps.flip(1).unbind(1)):
            threshold = self.threshold[place]
            after = torch.maximum(threshold, self.channels[self.permutation[other]])
            before = torch.maximum(threshold, self.channels[self.permutation[place]])
            gains += (after - before).sum(1, dtype=torch.float64)
        return gains


def _thresholds(channels: Tensor, pattern: Pattern, permutation: Tensor, places: Tensor) -> Tensor:
    """``[places, C_out]``: the N-th highest score of the others of each place's group."""
    group = places // pattern.m * pattern.m
    steps = torch.arange(1, pattern.m, device=places.device)
    others = group.unsqueeze(1) + (places.unsqueeze(1) + steps) % pattern.m
    return nth_highest(channels, permutation[others], pattern.n)


def swap_search(
    scores: Tensor,
    pattern: Pattern,
    *,
    generator: torch.Generator,
    swaps: int = 10_000,
    escapes: int = 0,
    time_limit: float | None = None,
    start: Tensor | None = None,
    stop: Callable[[], bool] = never,
) -> Tensor:
    """The order that greedy swaps reach.

    It takes memory for two or three ``C_in × C_in`` tables in the scores' precision.

    Args:
        scores: ``[C_out, C_in]``, finite and not negative.
        pattern: N:M with M dividing C_in.
        generator: on the CPU; what escapes draw from.
        swaps: the most swaps to make before the first optimum, and after each escape.
        escapes: how often to exchange random channels of the best order and swap on;
            the result is kept if it retains more.
        time_limit: seconds after which no sweep is begun. Escapes go on until then,
            whatever ``escapes`` says, so the result depends on the machine's speed.
        start: ``LongTensor[C_in]``; None for the identity.
        stop: says whether to end at once with what is reached, asked before each sweep.

    Returns:
        ``LongTensor[C_in]`` on the scores' device. Its retained score is never below
        that of the start.

    Raises:
        ValueError: the scores are not finite or negative, or M does not divide C_in.
    """
    ended = over(time_limit, stop)
    groups = pattern.groups(scores.shape[1])
    channels = channelwise(scores).T
    start = identity(len(channels)) if start is None else start
    permutation = start.to(scores.device)
    if groups < 2:
        return permutation
    best = _climbed(SwapTable.of(channels, pattern, permutation), swaps, ended)
    retained = retained_by_rows(channels, pattern, best.permutation)
    for _ in range(escapes) if time_limit is None else itertools.count():
        if ended():
            break
        disturbed = best.reordered(_exchanged(best.permutation, generator))
        other = _climbed(disturbed, swaps, ended)
        reached = retained_by_rows(channels, pattern, other.permutation)
        if reached > retained:
            best, retained = other, reached
    return best.permutation


def _climbed(table: SwapTable, swaps: int, ended: Callable[[], bool]) -> SwapTable:
    """The table after the best swaps, until none helps or their time or number is over."""
    while swaps > 0 and not ended():
        chosen = table.best_swaps(swaps)
        if not len(chosen):
            break
        swaps -= len(chosen)
        permutation = table.permutation.clone()
        permutation[chosen] = table.permutation[chosen.flip(1)]
        table = table.reordered(permutation)
    return table


def _exchanged(permutation: Tensor, generator: torch.Generator) -> Tensor:
    """The order with the channels of a few random places exchanged among them."""
    count = max(2, len(permutation) // ESCAPE_SHARE)
    places = torch.randperm(len(permutation), generator=generator)[:count].to(permutation.device)
    exchanged = permutation.clone()
    exchanged[places] = permutation[places.roll(1)]
    return exchanged
