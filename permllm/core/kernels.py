"""What a step of learning asks of every weight, on the CPU: compiled by Numba when first used.

Each function makes one pass over its operands, tile by tile, so that all comparisons happen in
the cache; with PyTorch's operations every intermediate result would go through memory.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch

_MOST_ROWS = 512
"""Rows compared at a time: a block's operands stay in the second cache."""

_LEAST = -3e38
"""Below every score; finite, since the kernels are compiled to know no infinities."""


def _most_threads() -> int:
    """What Numba was given when it was imported; more cannot be asked for.

    Asking starts Numba's threads, and they set OpenMP's number, which PyTorch goes by: without
    putting it back, ``OMP_NUM_THREADS=1`` would no longer hold.
    """
    threads = torch.get_num_threads()
    most = numba.get_num_threads()
    torch.set_num_threads(threads)
    return most


_MOST_THREADS = _most_threads()


_COMPARISONS = 1 << 18
"""For less work than this, some hundred microseconds, no further thread is woken up."""


def use_threads_for(comparisons: int) -> None:
    """As many threads as PyTorch uses, but no more than there is work for."""
    worthwhile = 1 + comparisons // _COMPARISONS
    numba.set_num_threads(min(torch.get_num_threads(), _MOST_THREADS, worthwhile))


def masked_on_cpu(
    words: Any, scores: Any, permutation: Any, channels: Any, n: int, m: int, out: Any
) -> None:
    """Write the entries that an N:M mask keeps, and zeros for the others.

    Args:
        words: contiguous integers ``[C_in, R]``, the bytes of a weight.
        scores: contiguous ``[C_in, R]``, maybe in another order of channels.
        permutation: for each place the row of ``scores`` that stands there.
        channels: for each place the row of ``words``.
        n, m: of the pattern.
        out: as ``words``.
    """
    use_threads_for(scores.size * m)
    _masked(words, scores, permutation, channels, n, m, out)


def placement_gradient_on_cpu(scores: Any, gradient: Any, local: Any, n: int, m: int) -> Any:
    """What :func:`permllm.core.placements.placement_gradient` returns.

    Args:
        scores, gradient: contiguous ``[G, B, R]`` of one dtype.
        local: ``[G, B]``.
        n, m: of the pattern.
    """
    blocks, size, rows = scores.shape
    use_threads_for(scores.size * size)
    # Tiles are shared out as well, since there may be fewer blocks than threads.
    parts = np.empty((blocks, -(-rows // _MOST_ROWS), size, size), scores.dtype)
    _placements(scores, gradient, local, n, m, parts)
    return parts.sum(1)


@numba.njit(inline="always", cache=True)
def _rows_of(tile: int, tiles: int, rows: int) -> tuple[int, int]:
    """The first row of a tile and the one after its last; all tiles are about as long."""
    return tile * rows // tiles, (tile + 1) * rows // tiles


@numba.njit(parallel=True, cache=True)
def _masked(
    words: Any, scores: Any, permutation: Any, channels: Any, n: int, m: int, out: Any
) -> None:
    rows = scores.shape[1]
    tiles = (rows + _MOST_ROWS - 1) // _MOST_ROWS
    for unit in numba.prange(len(permutation) // m * tiles):
        group = unit // tiles * m
        first, last = _rows_of(unit % tiles, tiles, rows)
        ranks = np.zeros((m, last - first), np.int32)
        for later in range(m):
            for earlier in range(later):
                _rank(
                    scores[permutation[group + earlier], first:last],
                    scores[permutation[group + later], first:last],
                    ranks[earlier],
                    ranks[later],
                )
        for place in range(m):
            channel = channels[group + place]
            _keep(words[channel, first:last], ranks[place], n, out[channel, first:last])


# Loops over rows alone, so that the compiler makes vector instructions of these.


@numba.njit(inline="always", cache=True)
def _rank(earlier: Any, later: Any, earlier_rank: Any, later_rank: Any) -> None:
    """An entry's rank is the number of entries that beat it; the earlier wins a draw."""
    for row in range(len(earlier)):
        beaten = np.int32(earlier[row] >= later[row])
        later_rank[row] += beaten
        earlier_rank[row] += np.int32(1) - beaten


@numba.njit(inline="always", cache=True)
def _keep(words: Any, ranks: Any, n: int, out: Any) -> None:
    for row in range(len(words)):
        out[row] = words[row] if ranks[row] < n else 0


@numba.njit(fastmath=True, parallel=True, cache=True)
def _placements(scores: Any, gradient: Any, local: Any, n: int, m: int, parts: Any) -> None:
    blocks, size, rows = scores.shape
    tiles = parts.shape[1]
    for unit in numba.prange(blocks * tiles):
        block, tile = unit // tiles, unit % tiles
        first, last = _rows_of(tile, tiles, rows)
        rivals = np.empty((2, size, last - first), scores.dtype)
        threshold, lost = rivals[0], rivals[1]
        _rivals(scores[block], gradient[block], (first, last), local[block], n, m, threshold, lost)
        out = parts[block, tile]
        out[:] = 0
        for channel in range(0, size, 4):
            channels = channel, min(channel + 4, size)
            _gains(scores[block], gradient[block], (first, last), threshold, lost, channels, out)


@numba.njit(fastmath=True, inline="always", cache=True)
def _rivals(
    scores: Any, gradient: Any, tile: Any, local: Any, n: int, m: int, threshold: Any, lost: Any
) -> None:
    """For each place of a block the entry that a newcomer has to beat, and its gradient.

    It is the entry with the N-th highest score of the others in the group: the group's
    N-th highest, or the one below where the place's own entry is among the N highest.
    """
    first, last = tile
    rows = last - first
    highest = np.empty((n + 1, rows), scores.dtype)
    theirs = np.empty((n + 1, rows), scores.dtype)
    score, given = np.empty(rows, scores.dtype), np.empty(rows, scores.dtype)
    for group in range(0, len(local), m):
        highest[:] = _LEAST
        for place in range(group, group + m):
            score[:] = scores[local[place], first:last]
            given[:] = gradient[local[place], first:last]
            for rank in range(n + 1):
                _insert(score, given, highest[rank], theirs[rank])
        for place in range(group, group + m):
            _choose(
                scores[local[place], first:last],
                highest[n - 1],
                highest[n],
                theirs[n - 1],
                theirs[n],
                threshold[place],
                lost[place],
            )


@numba.njit(fastmath=True, inline="always", cache=True)
def _insert(score: Any, given: Any, highest: Any, theirs: Any) -> None:
    """Leave the higher of two, with what belongs to it, and take the lower along."""
    for row in range(len(score)):
        one, its, other, others = score[row], given[row], highest[row], theirs[row]
        higher = one > other
        highest[row] = one if higher else other
        theirs[row] = its if higher else others
        score[row] = other if higher else one
        given[row] = others if higher else its


@numba.njit(fastmath=True, inline="always", cache=True)
def _choose(
    score: Any, nth: Any, below: Any, nth_given: Any, below_given: Any, threshold: Any, lost: Any
) -> None:
    """The rank below for those that are among the N highest, else the N-th."""
    for row in range(len(score)):
        among = score[row] >= nth[row]
        threshold[row] = below[row] if among else nth[row]
        lost[row] = below_given[row] if among else nth_given[row]


@numba.njit(fastmath=True, inline="always", cache=True)
def _gains(
    scores: Any, gradient: Any, tile: Any, threshold: Any, lost: Any, channels: Any, out: Any
) -> None:
    """Add what the rows of a tile say of up to four channels at all places."""
    (first, last), (channel, end) = tile, channels
    size, place = len(scores), 0
    while end - channel == 4 and place + 2 <= size:
        _gains_of_eight(
            scores[channel, first:last],
            scores[channel + 1, first:last],
            scores[channel + 2, first:last],
            scores[channel + 3, first:last],
            gradient[channel, first:last],
            gradient[channel + 1, first:last],
            gradient[channel + 2, first:last],
            gradient[channel + 3, first:last],
            threshold[place],
            threshold[place + 1],
            lost[place],
            lost[place + 1],
            out[channel : channel + 4, place : place + 2],
        )
        place += 2
    for left in range(place, size):
        for i in range(channel, end):
            out[i, left] += _gain(
                scores[i, first:last],
                gradient[i, first:last],
                threshold[left],
                lost[left],
            )


@numba.njit(fastmath=True, inline="always", cache=True)
def _gain(moved: Any, given: Any, threshold: Any, lost: Any) -> Any:
    """What one channel gains at one place."""
    zero = given[0] - given[0]
    total = zero
    for row in range(len(moved)):
        more = given[row] - lost[row]
        total += more if moved[row] > threshold[row] else zero
    return total


@numba.njit(fastmath=True, inline="always", cache=True)
def _gains_of_eight(
    s0: Any, s1: Any, s2: Any, s3: Any, g0: Any, g1: Any, g2: Any, g3: Any,
    h0: Any, h1: Any, l0: Any, l1: Any, out: Any,
) -> None:  # fmt: skip
    """Add what four channels gain at two places.

    Each entry that is read serves several of eight sums, which stay in registers. Only written
    out like this do they become vector instructions.
    """
    zero = g0[0] - g0[0]
    t00, t01, t10, t11, t20, t21, t30, t31 = zero, zero, zero, zero, zero, zero, zero, zero
    for row in range(len(s0)):
        threshold, lost = h0[row], l0[row]
        t00 += g0[row] - lost if s0[row] > threshold else zero
        t10 += g1[row] - lost if s1[row] > threshold else zero
        t20 += g2[row] - lost if s2[row] > threshold else zero
        t30 += g3[row] - lost if s3[row] > threshold else zero
        threshold, lost = h1[row], l1[row]
        t01 += g0[row] - lost if s0[row] > threshold else zero
        t11 += g1[row] - lost if s1[row] > threshold else zero
        t21 += g2[row] - lost if s2[row] > threshold else zero
        t31 += g3[row] - lost if s3[row] > threshold else zero
    out[0, 0] += t00
    out[0, 1] += t01
    out[1, 0] += t10
    out[1, 1] += t11
    out[2, 0] += t20
    out[2, 1] += t21
    out[3, 0] += t30
    out[3, 1] += t31
