"""Shares a budget of kept weights out in whole numbers."""

from __future__ import annotations

from collections.abc import Sequence


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
