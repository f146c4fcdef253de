"""The placement gradient on the CPU, compiled by Numba when it is first used.

One pass over the operands, tile by tile, so that all comparisons happen in the cache;
with PyTorch's operations every one of ``G · B² · R`` would go through memory.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch

_TILE = 512
"""Rows compared at a time: tiles of four operands stay in the first cache."""

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


def placement_gradient_on_cpu(scores: Any, gradient: Any, hurdle: Any, lost: Any, out: Any) -> None:
    """Write what :func:`permllm.core.placements.placement_gradient` returns into ``out``.

    Args:
        scores, gradient, hurdle, lost: contiguous arrays ``[G, B, R]``.
        out: ``[G, B, B]``.
    """
    numba.set_num_threads(min(torch.get_num_threads(), _MOST_THREADS))
    _placements(scores, gradient, hurdle, lost, out)


def rivals_on_cpu(scores: Any, gradient: Any, n: int, m: int, hurdle: Any, lost: Any) -> None:
    """Write what :func:`permllm.core.placements.rivals_of` returns.

    Args:
        scores, gradient: contiguous arrays ``[C_in, R]``.
        n, m: of the pattern.
        hurdle, lost: ``[C_in, R]``.
    """
    numba.set_num_threads(min(torch.get_num_threads(), _MOST_THREADS))
    _rivals(scores, gradient, n, m, hurdle, lost)


@numba.njit(fastmath=True, parallel=True, cache=True)
def _rivals(scores: Any, gradient: Any, n: int, m: int, hurdle: Any, lost: Any) -> None:
    channels, rows = scores.shape
    for group in numba.prange(channels // m):
        highest = np.empty((n + 1, _TILE), scores.dtype)
        theirs = np.empty((n + 1, _TILE), scores.dtype)
        score, given = np.empty(_TILE, scores.dtype), np.empty(_TILE, scores.dtype)
        for first in range(0, rows, _TILE):
            size = min(_TILE, rows - first)
            highest[:] = _LEAST
            for place in range(group * m, group * m + m):
                score[:size] = scores[place, first : first + size]
                given[:size] = gradient[place, first : first + size]
                for rank in range(n + 1):
                    _insert(score[:size], given[:size], highest[rank], theirs[rank])
            for place in range(group * m, group * m + m):
                _choose(
                    scores[place, first : first + size],
                    highest[n - 1],
                    highest[n],
                    theirs[n - 1],
                    theirs[n],
                    hurdle[place, first : first + size],
                    lost[place, first : first + size],
                )


# Comparisons of floats alone, so that the compiler makes vector instructions of these.


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
    score: Any, nth: Any, below: Any, nth_given: Any, below_given: Any, hurdle: Any, lost: Any
) -> None:
    """The rank below for those that are among the N highest, else the N-th."""
    for row in range(len(score)):
        among = score[row] >= nth[row]
        hurdle[row] = below[row] if among else nth[row]
        lost[row] = below_given[row] if among else nth_given[row]


@numba.njit(fastmath=True, parallel=True, cache=True)
def _placements(scores: Any, gradient: Any, hurdle: Any, lost: Any, out: Any) -> None:
    blocks, size, rows = scores.shape
    fours = (size + 3) // 4
    for unit in numba.prange(blocks * fours):
        block, channel = unit // fours, unit % fours * 4
        end = min(channel + 4, size)
        out[block, channel:end] = 0
        for first in range(0, rows, _TILE):
            tile = first, min(first + _TILE, rows)
            _gains(
                scores[block],
                gradient[block],
                hurdle[block],
                lost[block],
                (channel, end),
                tile,
                out[block],
            )


@numba.njit(fastmath=True, inline="always", cache=True)
def _gains(
    scores: Any, gradient: Any, hurdle: Any, lost: Any, channels: Any, tile: Any, out: Any
) -> None:
    """Add what the rows of a tile say of up to four channels at all places."""
    (channel, end), (first, last) = channels, tile
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
            hurdle[place, first:last],
            hurdle[place + 1, first:last],
            lost[place, first:last],
            lost[place + 1, first:last],
            out[channel : channel + 4, place : place + 2],
        )
        place += 2
    for left in range(place, size):
        for i in range(channel, end):
            out[i, left] += _gain(
                scores[i, first:last],
                gradient[i, first:last],
                hurdle[left, first:last],
                lost[left, first:last],
            )


@numba.njit(fastmath=True, inline="always", cache=True)
def _gain(moved: Any, given: Any, hurdle: Any, lost: Any) -> Any:
    """What one channel gains at one place."""
    zero = given[0] - given[0]
    total = zero
    for row in range(len(moved)):
        more = given[row] - lost[row]
        total += more if moved[row] > hurdle[row] else zero
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
        hurdle, lost = h0[row], l0[row]
        t00 += g0[row] - lost if s0[row] > hurdle else zero
        t10 += g1[row] - lost if s1[row] > hurdle else zero
        t20 += g2[row] - lost if s2[row] > hurdle else zero
        t30 += g3[row] - lost if s3[row] > hurdle else zero
        hurdle, lost = h1[row], l1[row]
        t01 += g0[row] - lost if s0[row] > hurdle else zero
        t11 += g1[row] - lost if s1[row] > hurdle else zero
        t21 += g2[row] - lost if s2[row] > hurdle else zero
        t31 += g3[row] - lost if s3[row] > hurdle else zero
    out[0, 0] += t00
    out[0, 1] += t01
    out[1, 0] += t10
    out[1, 1] += t11
    out[2, 0] += t20
    out[2, 1] += t21
    out[3, 0] += t30
    out[3, 1] += t31
