"""What the searches share: one group after the other, each from its own random stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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

Stop = Callable[[], bool]


def test_each_group_is_searched_with_its_scores_its_pattern_and_the_seeds_of_both(
    stand_in: Any,
) -> None:
    window, seen = stand_in(seed=3), []

    def search(scores: Tensor, pattern: Pattern, generator: torch.Generator, stop: Stop) -> Tensor:
        assert not stop()
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
    search_groups(window, "none", 0, lambda scores, pattern, rng, stop: identity(scores.shape[1]))
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


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("tiny", "small", "threads"), [(groupwise.TINY, groupwise.SMALL, 1), (0, 10**9, 1), (0, 0, 2)]
)
@pytest.mark.usefixtures("two_threads")
def test_small_groups_are_searched_by_one_thread(
    tiny: int, small: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groupwise, "TINY", tiny)
    monkeypatch.setattr(groupwise, "SMALL", small)
    seen = set()

    def search(scores: Tensor, *_: object) -> Tensor:
        seen.add(torch.get_num_threads())
        return identity(scores.shape[1])

    groupwise.search_groups(toy_window(), "any", 0, search)
    assert torch.get_num_threads() == 2
    assert seen == {threads}
    # Nor do threads that start later.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


@pytest.mark.usefixtures("two_threads")
def test_groups_between_the_tiny_and_the_large_are_searched_side_by_side(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groupwise, "TINY", 0)
    both = threading.Barrier(2)

    def search(scores: Tensor, *_: object) -> Tensor:
        both.wait(timeout=60)
        return identity(scores.shape[1])

    window = stand_in()
    assert list(search_groups(window, "any", 0, search)) == ["attention", "mlp"]
    assert [done for _, done, _ in window.reported] == [0, 1, 2]


@pytest.mark.usefixtures("two_threads")
def test_a_search_that_fails_ends_those_beside_it(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groupwise, "TINY", 0)
    ended = []

    def search(scores: Tensor, pattern: Pattern, rng: torch.Generator, stop: Stop) -> Tensor:
        if pattern == Pattern(2, 4):
            raise ArithmeticError("no scores")
        for _ in range(6000):
            if stop():
                ended.append(pattern)
                break
            time.sleep(0.01)
        return identity(scores.shape[1])

    with pytest.raises(ArithmeticError, match="no scores"):
        search_groups(stand_in(), "any", 0, search)
    assert ended == [Pattern(4, 8)]


@pytest.mark.parametrize("learner", [Cp(rounds=10, steps=20), Greedy(escapes=2)], ids=str)
@pytest.mark.usefixtures("two_threads")
def test_orders_are_the_same_side_by_side(
    stand_in: Any, learner: PermutationLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = learner.learn(stand_in())
    monkeypatch.setattr(groupwise, "TINY", 0)
    beside = learner.learn(stand_in())
    for group, order in alone.items():
        assert torch.equal(beside[group], order)
