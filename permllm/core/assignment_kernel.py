"""Linear assignment on the CPU, compiled by Numba when first used: many blocks at once.

The method is that of Crouse (IEEE TAES 52(4), 2016), as in SciPy, with the same choice among
equals. SciPy's holds Python's lock and takes one matrix of float64; this takes all blocks in their
own dtype, side by side.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from permllm.core.kernels import use_threads_for


def assign_on_cpu(weights: Any) -> Any:
    """The columns that maximise the sum of the weights, one for each row of each block.

    Args:
        weights: ``[G, B, B]``, finite, float32 or float64.

    Returns:
        ``int64[G, B]``.
    """
    columns = np.empty(weights.shape[:2], np.int64)
    if len(weights) == 1:
        # Other threads may call this at the same time.
        _assign(weights[0], columns[0])
    else:
        use_threads_for(weights.size * weights.shape[2])
        _assign_all(weights, columns)
    return columns


@numba.njit(parallel=True, cache=True)
def _assign_all(weights: Any, columns: Any) -> None:
    for block in numba.prange(len(weights)):
        _assign(weights[block], columns[block])


@numba.njit(nogil=True, cache=True)
def _assign(weights: Any, columns: Any) -> None:
    """Give every row a column, one row after the other along the shortest augmenting path."""
    size = len(weights)
    # Dual variables, and what the cheapest path to each column costs and comes from.
    row_price, column_price = np.zeros(size), np.zeros(size)
    cost, origin = np.empty(size), np.empty(size, np.int64)
    rows = np.full(size, -1)
    columns[:] = -1
    # Rows and columns that the search has been through, in this order, and columns that are left.
    through, reached, left = (
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
    )
    for first in range(size):
        cost[:] = np.inf
        for place in range(size):
            left[place] = size - 1 - place
        steps, least, row = 0, 0.0, first
        while row >= 0:
            nearest, lowest = 0, np.inf
            for place in range(size - steps):
                column = left[place]
                price = row_price[row] + column_price[column]
                path = least - np.float64(weights[row, column]) - price
                if path < cost[column]:
                    cost[column], origin[column] = path, row
                # Of columns that are as near, a free one ends the search.
                near = cost[column]
                if near < lowest or (near == lowest and rows[column] < 0):
                    nearest, lowest = place, near
            least, column = lowest, left[nearest]
            through[steps], reached[steps] = row, column
            steps += 1
            left[nearest] = left[size - steps]
            row = rows[column]
        row_price[first] += least
        for step in range(steps):
            if step:
                row_price[through[step]] += least - cost[columns[through[step]]]
            column_price[reached[step]] -= least - cost[reached[step]]
        # Along the path every row takes the column that the next one gives up.
        row, column = -1, reached[steps - 1]
        while row != first:
            row = origin[column]
            rows[column] = row
            columns[row], column = column, columns[row]
