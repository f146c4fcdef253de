"""``none``, ``cp`` and ``greedy`` as a window's learners."""

from __future__ import annotations

from types import SimpleNamespace

import attrs
import pytest
import torch

from permllm.components import PermutationLearner
from permllm.core.patterns import Pattern, retained_score
from permllm.core.permutations import identity, is_permutation
from permllm.permutations import permllm_permutations
from permllm.permutations.cp import Cp
from permllm.permutations.greedy import Greedy
from permllm.permutations.none import NoPermutation

PATTERNS = {"attention": Pattern(2, 4), "mlp": Pattern(4, 8)}


class StandInWindow:
    """What the learners read of a window: two groups with random scores."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = torch.Generator().manual_seed(1)
        self.all_scores = {
            "attention": torch.rand(24, 32, generator=rng),
            "mlp": torch.rand(16, 48, generator=rng) ** 4,
        }
        self.groups = {
            name: SimpleNamespace(name=name, linears=(name,), channels=scores.shape[1])
            for name, scores in self.all_scores.items()
        }
        self.reported: list[tuple[str, int, int]] = []

    def group_scores(self, name: str, most: int | None = None) -> torch.Tensor:
        return self.all_scores[name]

    def pattern(self, name: str) -> Pattern:
        return PATTERNS[name]

    def progress(self, stage: str, done: int, total: int) -> None:
        self.reported.append((stage, done, total))


def learned(learner: PermutationLearner, window: StandInWindow) -> dict[str, torch.Tensor]:
    return learner.learn(window)  # type: ignore[arg-type]


def retained(window: StandInWindow, permutations: dict[str, torch.Tensor]) -> dict[str, float]:
    return {
        name: retained_score(scores, PATTERNS[name], permutations[name]).item()
        for name, scores in window.all_scores.items()
    }


def test_none_keeps_the_order() -> None:
    window = StandInWindow()
    permutations = learned(NoPermutation(), window)
    assert list(permutations) == list(window.groups)
    for name, permutation in permutations.items():
        assert torch.equal(permutation, identity(window.groups[name].channels))


@pytest.mark.parametrize(
    "learner",
    [
        Cp(rounds=20, steps=10),
        Cp(rounds=0, steps=0),
        Cp(refine=False),
        Cp(time_limit=0.05),
        Greedy(),
        Greedy(swaps=1),
        Greedy(escapes=3),
        Greedy(time_limit=0.05),
    ],
    ids=str,
)
def test_gives_bijections_that_never_retain_less(learner: PermutationLearner) -> None:
    window = StandInWindow()
    permutations = learned(learner, window)
    before = retained(window, learned(NoPermutation(), window))
    after = retained(window, permutations)
    for name, group in window.groups.items():
        assert is_permutation(permutations[name], group.channels)
        assert after[name] >= before[name]
    assert [done for _, done, _ in window.reported] == [0, 1, 2]


@pytest.mark.parametrize("learner", [Cp(rounds=10, steps=20), Greedy(escapes=2)], ids=str)
def test_is_a_function_of_the_seeds(learner: Cp | Greedy) -> None:
    first, second = (learned(learner, StandInWindow()) for _ in range(2))
    by_option = learned(attrs.evolve(learner, seed=7), StandInWindow())
    by_window = learned(learner, StandInWindow(seed=7))
    for name in first:
        assert torch.equal(first[name], second[name])
        assert torch.equal(by_option[name], by_window[name])
    assert any(not torch.equal(first[name], by_option[name]) for name in first)


def test_a_group_does_not_depend_on_the_others() -> None:
    learner = Cp(rounds=10, steps=20)
    whole, part = StandInWindow(), StandInWindow()
    del part.groups["attention"]
    assert torch.equal(learned(learner, part)["mlp"], learned(learner, whole)["mlp"])


def test_more_work_retains_more() -> None:
    window = StandInWindow()
    stages = [NoPermutation(), Cp(rounds=0, steps=0), Cp(rounds=100, steps=100)]
    values = [retained(window, learned(learner, window)) for learner in stages]
    for name in window.groups:
        assert values[0][name] < values[1][name] < values[2][name]


def test_built_in_learners_come_through_the_hook() -> None:
    assert [learner.name for learner in permllm_permutations()] == ["none", "cp", "greedy", "lcp"]


@pytest.mark.parametrize(
    ("learner", "options"),
    [(Cp, {"rounds": -1}), (Cp, {"time_limit": -0.1}), (Greedy, {"swaps": -1})],
)
def test_refuses_impossible_options(learner: type, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        learner(**options)
