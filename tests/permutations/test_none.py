from __future__ import annotations

from typing import Any

import torch

from permllm.contexts.cost import ComponentCost, Workload
from permllm.permutations import permllm_permutations
from permllm.permutations.none import NoPermutation
from permllm.testing import check_permutation_learner


def test_contract() -> None:
    check_permutation_learner(NoPermutation(), never_worse=True)


def test_every_group_keeps_its_order(stand_in: Any) -> None:
    window = stand_in()
    permutations = NoPermutation().learn(window)
    assert list(permutations) == list(window.groups)
    for name, permutation in permutations.items():
        assert torch.equal(permutation, torch.arange(window.groups[name].channels))


def test_costs_nothing() -> None:
    workload = Workload(sequences=8, length=32, groups=10)
    assert NoPermutation().cost(workload) == ComponentCost()


def test_built_in_learners_come_through_the_hook() -> None:
    assert [learner.name for learner in permllm_permutations()] == ["none", "cp", "greedy", "lcp"]
