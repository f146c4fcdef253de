"""Channel permutation by assignment, as a window's learner."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.permutations import is_permutation
from permllm.core.search import search
from permllm.permutations.cp import Cp
from permllm.permutations.none import NoPermutation
from permllm.testing import check_permutation_learner


def test_contract() -> None:
    check_permutation_learner(Cp(rounds=3, steps=3), never_worse=True)


@pytest.mark.parametrize(
    "learner",
    [Cp(rounds=20, steps=10), Cp(rounds=0, steps=0), Cp(refine=False), Cp(time_limit=0.05)],
    ids=str,
)
def test_gives_bijections_that_never_retain_less(stand_in: Any, learner: Cp) -> None:
    window = stand_in()
    permutations = learner.learn(window)
    before, after = (
        window.retained(orders) for orders in (NoPermutation().learn(window), permutations)
    )
    for name, group in window.groups.items():
        assert is_permutation(permutations[name], group.channels)
        assert after[name] >= before[name]
    assert window.reported == [("cp", done, 2) for done in range(3)]


@pytest.mark.parametrize(
    "options",
    [{"rounds": 7, "steps": 11}, {"rounds": 7, "steps": 0}, {"refine": False}],
    ids=str,
)
def test_every_option_reaches_the_search(stand_in: Any, options: dict[str, Any]) -> None:
    window = stand_in(seed=2)
    permutations = Cp(seed=3, **options).learn(window)
    for name, scores in window.all_scores.items():
        expected = search(
            scores,
            window.patterns[name],
            generator=torch.Generator().manual_seed(5),
            **options,
        )
        assert torch.equal(permutations[name], expected)


def test_a_time_limit_reaches_the_search(stand_in: Any) -> None:
    """Nothing but the order to begin with fits into no time."""
    window = stand_in()
    at_once = Cp(time_limit=0.0).learn(window)
    first = Cp(refine=False).learn(window)
    assert all(torch.equal(at_once[name], first[name]) for name in first)


def test_is_a_function_of_the_seeds(stand_in: Any) -> None:
    learner = Cp(rounds=10, steps=20)
    first, second = (learner.learn(stand_in()) for _ in range(2))
    by_option = attrs.evolve(learner, seed=7).learn(stand_in())
    by_window = learner.learn(stand_in(seed=7))
    for name in first:
        assert torch.equal(first[name], second[name])
        assert torch.equal(by_option[name], by_window[name])
    assert any(not torch.equal(first[name], by_option[name]) for name in first)


def test_more_work_retains_more(stand_in: Any) -> None:
    window = stand_in()
    stages = [NoPermutation(), Cp(rounds=0, steps=0), Cp(rounds=100, steps=100)]
    values = [window.retained(learner.learn(window)) for learner in stages]
    for name in window.groups:
        assert values[0][name] < values[1][name] < values[2][name]


def test_costs_its_time_limit_for_every_group() -> None:
    workload = Workload(sequences=8, length=32, groups=10)
    assert Cp().cost(workload) == ComponentCost(search_seconds=10 * Cp.seconds_per_group)
    assert Cp(time_limit=2.0).cost(workload) == ComponentCost(search_seconds=20.0)


@pytest.mark.parametrize("options", [{"rounds": -1}, {"steps": -1}, {"time_limit": -0.1}])
def test_refuses_impossible_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        Cp(**options)
