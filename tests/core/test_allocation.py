"""Whole shares of a budget, against their definition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.core.allocation import FINEST, cheapest_choices, whole_shares


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


@st.composite
def choices(draw: st.DrawFn) -> tuple[list[list[float]], list[list[int]], int]:
    items = draw(st.integers(1, 4))
    counts = [draw(st.integers(1, 4)) for _ in range(items)]
    costs = [draw(st.lists(st.floats(0, 9), min_size=n, max_size=n)) for n in counts]
    sizes = [draw(st.lists(st.integers(0, 40), min_size=n, max_size=n)) for n in counts]
    least = sum(map(min, sizes))
    return costs, sizes, draw(st.integers(least, least + 100))


def total(table: list[list[float]] | list[list[int]], chosen: Sequence[int]) -> float:
    return sum(each[place] for each, place in zip(table, chosen, strict=True))


@given(choices())
def test_no_other_choice_within_the_budget_costs_less(
    problem: tuple[list[list[float]], list[list[int]], int],
) -> None:
    costs, sizes, budget = problem
    chosen = cheapest_choices(costs, sizes, budget)
    assert total(sizes, chosen) <= budget
    fitting = [
        every
        for every in product(*(range(len(each)) for each in sizes))
        if total(sizes, every) <= budget
    ]
    assert total(costs, chosen) == pytest.approx(min(total(costs, every) for every in fitting))


def test_a_budget_of_many_parts_is_cut_into_fewer_and_kept() -> None:
    costs = [[1.0 / (item + n + 1) for n in range(3)] for item in range(30)]
    sizes = [[(7919 + 31 * item) * (n + 1) for n in range(3)] for item in range(30)]
    budget = 2 * sum(each[0] for each in sizes)
    assert budget > 10 * FINEST
    chosen = cheapest_choices(costs, sizes, budget)
    assert budget - max(each[0] for each in sizes) < total(sizes, chosen) <= budget


def test_choices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="too small for the smallest, which take 5"):
        cheapest_choices([[1.0], [1.0]], [[2], [3]], 4)
