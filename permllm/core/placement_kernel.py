"""The placement gradient on the CPU, compiled by Numba when it is first used.

One pass over the operands, tile by tile, so that all comparisons happen in the cache;
with PyTorch's operations every one of ``G · B² · R`` would go through memory.
"""

from __future__ import annotations

from typing import Any

import numba
import torch

_TILE = 256
"""Rows compared at a time: tiles of four operands stay in the first cache."""

_MOST_THREADS = numba.get_num_threads()
"""What Numba was given when it was imported; more cannot be asked for."""


def placement_gradient_on_cpu(scores: Any, gradient: Any, hurdle: Any, lost: Any, out: Any) -> None:
    """Write what :func:`permllm.core.placements.placement_gradient` returns into ``out``.

    Args:
        scores, gradient, hurdle, lost: contiguous arrays ``[G, B, R]``.
        out: ``[G, B, B]``.
    """
    numba.set_num_threads(min(torch.get_num_threads(), _MOST_THREADS))
    _placements(scores, gradient, hurdle, lost, out)


@numba.njit(fastmath=True, inline="always", cache=True)
def _gain(moved: Any, given: Any, hurdle: Any, lost: Any) -> Any:
    zero = given[0] - given[0]
    total = zero
    for row in range(len(moved)):
        more = given[row] - lost[row]
        total += more if moved[row] > hurdle[row] else zero
    return total


@numba.njit(fastmath=True, parallel=True, cache=True)
def _placements(scores: Any, gradient: Any, hurdle: Any, lost: Any, out: Any) -> None:
    blocks, size, rows = scores.shape
    for unit in numba.prange(blocks * size):
        block, channel = unit // size, unit % size
        for place in range(size):
            out[block, channel, place] = 0
        for first in range(0, rows, _TILE):
            last = min(first + _TILE, rows)
            moved = scores[block, channel, first:last]
            given = gradient[block, channel, first:last]
            for place in range(size):
                out[block, channel, place] += _gain(
                    moved, given, hurdle[block, place, first:last], lost[block, place, first:last]
                )
