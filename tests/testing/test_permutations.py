"""The contract of learners lets good ones pass, and says what is wrong with bad ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor

from permllm.components import PermutationLearner
from permllm.testing import check_permutation_learner


@attrs.frozen(eq=False)
class AnyLearner(PermutationLearner):
    """Orders channels by a function of their number."""

    name: ClassVar[str] = "any"
    function: Any

    def learn(self, window: Any) -> dict[str, Tensor]:
        return {name: self.function(group.channels) for name, group in window.groups.items()}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda n: torch.zeros(n, dtype=torch.long), "each of 0 to 31 once"),
        (lambda n: torch.arange(n + 1), "each of 0 to 31 once"),
        (lambda n: torch.arange(n, dtype=torch.int32), "expected a LongTensor"),
        (torch.randperm, "must draw from a generator seeded with window.seed"),
    ],
)
def test_bad_learners(function: Callable[[int], Tensor], message: str, fails) -> None:
    check_permutation_learner(AnyLearner(torch.arange))
    fails(check_permutation_learner, AnyLearner(function), f"learner 'any': .*{message}")


def test_learners_that_break_their_promise(fails) -> None:
    def reverse_pairs(count: int) -> Tensor:
        return torch.arange(count).view(-1, 2).T.reshape(-1)

    learner = AnyLearner(reverse_pairs)
    check_permutation_learner(learner)
    fails(check_permutation_learner, learner, "less than the .* of the original", never_worse=True)
    unseeded = AnyLearner(lambda n: torch.randperm(n, generator=GENERATOR))
    fails(check_permutation_learner, unseeded, "two equal windows gave two permutations")
    check_permutation_learner(unseeded, deterministic=False)


GENERATOR = torch.Generator().manual_seed(0)


@attrs.frozen(eq=False)
class Keeper(PermutationLearner):
    """Makes group by group, and keeps what a function makes of them."""

    name: ClassVar[str] = "keeper"
    kept: Any

    def learn(self, window: Any) -> dict[str, Tensor]:
        made = window.kept("made") or {}
        for name, group in window.groups.items():
            if name not in made:
                made[name] = torch.arange(group.channels)
                window.keep("made", self.kept(made))
        return made


def test_learners_go_on_from_what_they_kept(fails) -> None:
    check_permutation_learner(Keeper(lambda made: made))
    wrong = Keeper(lambda made: {name: one.flip(0) for name, one in made.items()})
    fails(check_permutation_learner, wrong, "goes on from what it kept to another permutation")
