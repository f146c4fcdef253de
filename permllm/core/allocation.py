"""Shares a budget of kept weights out in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FINEST = 20_000
"""The parts that a budget is cut into at most; sizes are rounded up to whole ones."""


def whole_shares(
    wanted: Sequence[float], sizes: Sequence[int], budget: float, most: int
) -> list[int]:
    """Whole numbers from 1 to ``most`` near what is wanted, as large as the budget allows.

    Nobody gets more than what is wanted, rounded up. Those that are furthest below it get
    more first (largest remainders), the earlier where that is equal.

    Args:
        wanted: how much each one would have.
        sizes: what one more costs each of them.
        budget: that the costs must not exceed in sum, at least that of 1 for all.
        most: the largest number.

    Raises:
        ValueError: the budget is too small for 1 each.
    """
    shares = [1] * len(sizes)
    left = budget - sum(sizes)
    if left < 0:
        raise ValueError(f"a budget of {budget} is too small for 1 each, which takes {sum(sizes)}")
    while True:
        fitting = [
            place
            for place, size in enumerate(sizes)
            if size <= left and shares[place] < most and shares[place] < wanted[place]
        ]
        if not fitting:
            return shares
        place = max(fitting, key=lambda place: wanted[place] - shares[place])
        shares[place] += 1
        left -= sizes[place]


def cheapest_choices(
    costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: int
) -> list[int]:
    """One choice for each item so that the costs are least and the sizes fit the budget.

    Found exactly, by dynamic programming over the budget; where that has more than
    :data:`FINEST` parts of what all sizes have in common, sizes count a little more.

    Args:
        costs: by item and choice.
        sizes: the same.
        budget: that the sizes of what is chosen must not exceed in sum.

    Returns:
        the place of the choice of each item.

    Raises:
        ValueError: the budget is too small for the smallest choice of each.
    """
    least = sum(map(min, sizes))
    if least > budget:
        raise ValueError(f"a budget of {budget} is too small for the smallest, which take {least}")
    extra = [[size - min(each) for size in each] for each in sizes]
    common = math.gcd(*(size for each in extra for size in each)) or 1
    unit = common * math.ceil(max(1, (budget - least) // common / FINEST))
    room = (budget - least) // unit
    # The least cost of the items so far in so many units, and what it takes for it.
    cost = torch.zeros(room + 1, dtype=torch.float64)
    taken: list[Tensor] = []
    steps = [[-(-size // unit) for size in each] for each in extra]
    for prices, taking in zip(costs, steps, strict=True):
        best = torch.full_like(cost, math.inf)
        place = torch.zeros(room + 1, dtype=torch.int64)
        for choice, (price, step) in enumerate(zip(prices, taking, strict=True)):
            if step <= room:
                found = cost[: room + 1 - step] + price
                better = found < best[step:]
                best[step:] = torch.where(better, found, best[step:])
                place[step:][better] = choice
        cost = best
        taken.append(place)
    chosen, left = [], room
    for place, each in zip(reversed(taken), reversed(steps), strict=True):
        choice = int(place[left])
        chosen.append(choice)
        left -= each[choice]
    return chosen[::-1]
