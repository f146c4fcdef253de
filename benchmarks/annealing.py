"""Simulated annealing among channel swaps: a second opinion on how good an order can be.

Swaps of two channels of different groups, drawn at random, are made where they raise the
retained score, and with probability ``exp(gain / T)`` where they lower it, while the
temperature ``T`` falls (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983). It shares
nothing with the searches of permllm but the problem; :mod:`cp_efficacy` sets them side by side.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from permllm.core.patterns import Pattern

HOTTEST, COLDEST = 0.6, 0.05
"""The first and the last temperature, in units of the scores."""


def anneal(
    scores: Tensor, pattern: Pattern, *, proposals: int, generator: torch.Generator
) -> Tensor:
    """The best order on the way.

    Args:
        scores: ``[C_out, C_in]``.
        pattern: N:M.
        proposals: how many swaps are proposed.
        generator: seeds what is drawn.

    Returns:
        ``LongTensor[C_in]``.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    channels = np.ascontiguousarray(scores.T.float().numpy())
    best = np.empty(len(channels), np.int64)
    _anneal(channels, pattern.n, pattern.m, proposals, seed, best)
    return torch.from_numpy(best)


@numba.njit(fastmath=True, cache=True)
def _anneal(channels: Any, n: int, m: int, proposals: int, seed: int, best: Any) -> None:
    np.random.seed(seed)  # Numba keeps a generator of its own; nobody else's changes.
    size, rows = channels.shape
    order = np.arange(size)
    thresholds, own = np.empty((size, rows), np.float32), np.empty(size, np.float32)
    for group in range(size // m):
        _thresholds(channels, order, group, n, m, thresholds, own)
    temperature, reached, highest = HOTTEST, 0.0, 0.0
    cooling = (COLDEST / HOTTEST) ** (1 / proposals)
    best[:] = order
    for _ in range(proposals):
        temperature *= cooling
        p, q = np.random.randint(size), np.random.randint(size)
        if p // m == q // m:
            continue
        there = _max_sum(thresholds[p], channels[order[q]]) + _max_sum(
            thresholds[q], channels[order[p]]
        )
        gain = there - own[p] - own[q]
        if gain < 0 and np.random.random() >= np.exp(gain / temperature):
            continue
        order[p], order[q] = order[q], order[p]
        _thresholds(channels, order, p // m, n, m, thresholds, own)
        _thresholds(channels, order, q // m, n, m, thresholds, own)
        reached += gain
        if reached > highest:
            highest = reached
            best[:] = order


@numba.njit(fastmath=True, inline="always", cache=True)
def _max_sum(one: Any, other: Any) -> Any:
    total = np.float32(0)
    for row in range(len(one)):
        total += max(one[row], other[row])
    return total


@numba.njit(fastmath=True, cache=True)
def _thresholds(
    channels: Any, order: Any, group: int, n: int, m: int, thresholds: Any, own: Any
) -> None:
    """For each place of a group the N-th highest score of the others, and what it retains."""
    rows = channels.shape[1]
    highest = np.full((n + 1, rows), np.float32(-1))
    score = np.empty(rows, np.float32)
    for place in range(group * m, group * m + m):
        score[:] = channels[order[place]]
        for rank in range(n + 1):
            known = highest[rank]
            for row in range(rows):
                higher, lower = max(score[row], known[row]), min(score[row], known[row])
                known[row], score[row] = higher, lower
    nth, below = highest[n - 1], highest[n]
    for place in range(group * m, group * m + m):
        channel, threshold = channels[order[place]], thresholds[place]
        for row in range(rows):
            threshold[row] = below[row] if channel[row] >= nth[row] else nth[row]
        own[place] = _max_sum(threshold, channel)
