"""How many steps a training makes of a number or a time."""

from __future__ import annotations

import attrs
import pytest
from torch import Tensor

from permllm.components import PermutationLearner
from permllm.contexts.window import Window
from permllm.core.durations import Duration
from permllm.permutations.cp import Cp
from permllm.permutations.greedy import Greedy
from permllm.permutations.lcp import Lcp
from permllm.permutations.none import NoPermutation
from permllm.pruners.distil import Distil
from permllm.testing.windows import toy_window
from permllm.training.budget import (
    START_SHARE,
    StepCount,
    first_permutations,
    guessed_steps,
    steps_of,
    within_share,
)


def test_a_number_of_steps_stays() -> None:
    count = StepCount(7)
    assert [count.total(done) for done in (0, 1, 6, 7)] == [7, 7, 7, 7]


def test_a_time_holds_as_many_steps_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("permllm.training.budget.time.monotonic", lambda: clock[0])
    count = StepCount(3, seconds=20.0)
    clock[0] = 105.0  # what comes before the first step counts
    assert count.total(0) == 3
    clock[0] = 107.0
    assert count.total(1) == 1 + 6  # 13 s left, 2 s each
    clock[0] = 111.0
    assert count.total(2) == 2 + 3  # 9 s left, 3 s each
    clock[0] = 121.0
    assert count.total(3) == 3


def test_quick_steps_are_counted_in_fractions_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("permllm.training.budget.time.monotonic", lambda: clock[0])
    count = StepCount(3, seconds=20.0)
    assert [count.total(0), count.total(0)] == [3, 3]
    assert count.total(1) > 10**9  # it took no time at all
    clock[0] = 100.5
    assert count.total(1) == 1 + 39  # 19.5 s left, half a second each


def test_a_window_has_its_share_of_a_budget() -> None:
    learner = Distil(budget=Duration(60.0))
    assert learner.count(toy_window()).seconds == 60.0
    assert learner.count(toy_window(layers=range(1))).seconds == 30.0
    assert Distil(steps=5).count(toy_window()).seconds is None


def test_steps_come_before_passes() -> None:
    assert steps_of(None, 3, 4, 8) == 6
    assert steps_of(None, 3, 4, 9) == 9
    assert steps_of(7, 3, 4, 9) == 7


def test_a_time_is_guessed_to_hold_a_step_a_second() -> None:
    assert guessed_steps(90.4) == 90
    assert guessed_steps(0.1) == 1


def test_a_guess_goes_with_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("permllm.training.budget.GUESSED_SPEED", 2.0)
    assert guessed_steps(90.4) == 181


@pytest.mark.parametrize(
    ("learner", "budget", "limit"),
    [
        (Cp(), None, None),
        (Cp(), 4.0, 4.0 * START_SHARE / 8),
        (Cp(), 8.0, None),  # a quarter of a second for each of 8 groups is just its share
        (Cp(), 7.9, 7.9 * START_SHARE / 8),
        (Greedy(), 8.0, 8.0 * START_SHARE / 8),
        (Cp(time_limit=3.0), 1.0, 3.0),
    ],
)
def test_a_search_is_held_to_its_share(
    learner: PermutationLearner, budget: float | None, limit: float | None
) -> None:
    assert within_share(learner, 8, budget).time_limit == limit


def test_a_start_without_a_limit_is_left_alone() -> None:
    assert within_share(Lcp(), 8, 1.0) == Lcp()


def test_a_slow_start_that_has_no_limit_to_set_is_left_alone() -> None:
    @attrs.frozen
    class Slow(PermutationLearner):
        """Takes its time."""

        name = "slow"
        seconds_per_group = 1e6

    assert within_share(Slow(), 8, 1.0) == Slow()


def test_sized_steps_fill_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("permllm.training.budget.time.monotonic", lambda: 10.0)
    assert StepCount(1, 40.0).sized(4, 2.0) == (4, 5)
    assert StepCount(1, 31.9).sized(4, 2.0) == (3, 5)
    assert StepCount(1, 7.9).sized(4, 2.0) == (1, 3)
    assert StepCount(1, 4.0).sized(4, 2.0) == (1, 2)
    assert StepCount(1, 3.9).sized(4, 2.0) == (1, 0)


def test_without_a_time_there_is_no_room_for_a_step() -> None:
    assert StepCount(1).sized(4, 0.1) == (1, 0)


def test_a_budget_holds_the_search_to_its_share() -> None:
    window = toy_window()
    asked: list[PermutationLearner] = []

    def find(learner: PermutationLearner, window: Window) -> dict[str, Tensor]:
        asked.append(learner)
        return NoPermutation().learn(window)

    window.find_permutations = find
    groups = len(window.groups)
    own = Cp(time_limit=3.0)
    for learner, budget in ((Cp(), None), (Cp(), 1.0), (Cp(), 1e4), (own, 1.0), (Lcp(), 1.0)):
        first_permutations(learner, window, budget)
    assert asked == [Cp(), Cp(time_limit=START_SHARE / groups), Cp(), own, Lcp()]
