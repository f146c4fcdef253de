"""Whole shares of a budget, against their definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.core.allocation import whole_shares


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], list[int], float, int]:
    most = draw(st.integers(1, 15))
    count = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.integers(1, 500), min_size=count, max_size=count))
    wanted = draw(st.lists(st.floats(-1, 17), min_size=count, max_size=count))
    budget = draw(st.floats(sum(sizes), sum(sizes) * most))
    return wanted, sizes, budget, most


@given(problems())
def test_shares_are_within_bounds_and_budget_and_fill_it(
    problem: tuple[list[float], list[int], float, int],
) -> None:
    wanted, sizes, budget, most = problem
    shares = whole_shares(*problem)
    left = budget - sum(share * size for share, size in zip(shares, sizes, strict=True))
    assert left >= 0
    for share, size, wish in zip(shares, sizes, wanted, strict=True):
        assert 1 <= share <= most
        assert share == 1 or share - wish < 1 + 1e-9, "no more than is wanted, rounded up"
        assert share == most or share >= wish or size > left, "what is left helps nobody"


def test_the_one_that_lacks_most_comes_first() -> None:
    assert whole_shares([2.4, 1.8, 1.9], [10, 10, 10], 60, 7) == [2, 2, 2]
    assert whole_shares([2.4, 1.8, 1.9], [10, 10, 10], 50, 7) == [2, 1, 2]
    assert whole_shares([2.0, 2.0, 2.0], [10, 10, 10], 50, 7) == [2, 2, 1]
    assert whole_shares([3.0, 2.0, 1.0], [1, 1, 1], 6, 7) == [3, 2, 1]


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="too small for 1 each, which takes 30"):
        whole_shares([1.0, 2.0], [10, 20], 29, 3)
