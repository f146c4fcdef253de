"""What the searches share: one group after the other, each from its own random stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from permllm.components import PermutationLearner
from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.patterns import Pattern
from permllm.core.permutations import identity
from permllm.permutations import groupwise
from permllm.permutations.cp import Cp
from permllm.permutations.greedy import Greedy
from permllm.permutations.groupwise import (
    MOST_ROWS,
    search_cost,
    search_groups,
)
from permllm.testing.windows import toy_window


def test_each_group_is_searched_with_its_scores_its_pattern_and_the_seeds_of_both(
    stand_in: Any,
) -> None:
    window, seen = stand_in(seed=3), []

    def search(scores: Tensor, pattern: Pattern, generator: torch.Generator) -> Tensor:
        seen.append((scores, pattern, torch.rand(2, generator=generator).tolist()))
        return identity(scores.shape[1]).flip(0)

    permutations = search_groups(window, "backwards", 4, search)
    drawn = torch.rand(2, generator=torch.Generator().manual_seed(7)).tolist()
    assert list(permutations) == ["attention", "mlp"]
    for (name, order), (scores, pattern, random) in zip(permutations.items(), seen, strict=True):
        assert scores is window.all_scores[name]
        assert pattern == window.patterns[name]
        assert random == drawn
        assert torch.equal(order, identity(scores.shape[1]).flip(0))
    assert window.reported == [("backwards", 0, 2), ("backwards", 1, 2), ("backwards", 2, 2)]


def test_no_more_rows_are_asked_for_than_a_search_looks_at(stand_in: Any) -> None:
    window = stand_in()
    search_groups(window, "none", 0, lambda scores, pattern, rng: identity(scores.shape[1]))
    assert window.rows_asked_for == [MOST_ROWS, MOST_ROWS]


@pytest.mark.parametrize("learner", [Cp(rounds=10, steps=20), Greedy(escapes=2)], ids=str)
def test_a_group_does_not_depend_on_the_others(stand_in: Any, learner: PermutationLearner) -> None:
    whole, part = stand_in(), stand_in()
    del part.groups["attention"]
    assert torch.equal(learner.learn(part)["mlp"], learner.learn(whole)["mlp"])


@pytest.mark.parametrize(("limit", "seconds"), [(None, 2.5), (2.0, 20.0), (0.0, 0.0)])
def test_a_search_costs_its_limit_or_its_usual_time_for_every_group(
    limit: float | None, seconds: float
) -> None:
    workload = Workload(sequences=8, length=32, groups=10)
    cost = search_cost(Cp(), limit, workload)
    assert cost == ComponentCost(search_seconds=pytest.approx(seconds))


@pytest.mark.parametrize(("small", "threads"), [(groupwise.SMALL, 1), (0, 2)])
def test_small_groups_are_searched_by_one_thread(
    small: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groupwise, "SMALL", small)
    before, seen = torch.get_num_threads(), set()

    def search(scores: torch.Tensor, pattern: Pattern, generator: torch.Generator) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return torch.arange(scores.shape[1])

    torch.set_num_threads(2)
    try:
        groupwise.search_groups(toy_window(), "any", 0, search)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {threads}
