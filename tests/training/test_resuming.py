"""A training that is interrupted goes on to the same bits, and makes no step twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from permllm.contexts.window import Window
from permllm.core.patterns import nm_mask
from permllm.permutations.lcp import Lcp
from permllm.permutations.none import NoPermutation
from permllm.pruners.distil import Distil
from permllm.pruners.learned_mask import LearnedMask
from permllm.testing.windows import MemoryCheckpoints, toy_window
from permllm.training import loop, resuming
from permllm.training.budget import StepCount
from permllm.training.loop import Step, Trainee, train
from permllm.training.optimisers import BlockAdam

Steps = list[tuple[int, int, dict[str, float]]]


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(resuming, "TIMES_WRITING", 0.0)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the steps that are really made."""
    numbers: list[int] = []
    step = loop.train_step

    def counted(trainee: Any, loss: Any, rows: Tensor, at: Step, *rest: Any) -> dict[str, float]:
        numbers.append(at.number)
        return step(trainee, loss, rows, at, *rest)

    monkeypatch.setattr(loop, "train_step", counted)
    return numbers


def window_with(checkpoints: MemoryCheckpoints) -> tuple[Window, Steps]:
    window, steps = toy_window(), []
    window.checkpoints = checkpoints
    window.on_step = lambda step, total, figures: steps.append((step, total, dict(figures)))
    return window, steps


def learned(learner: Lcp) -> Callable[[Window], dict[str, Tensor]]:
    return learner.learn


def distilled(pruner: Distil) -> Callable[[Window], dict[str, Tensor]]:
    def update(window: Window) -> dict[str, Tensor]:
        weights = {
            linear: window.weight(linear) * nm_mask(window.scores(linear), window.pattern(name))
            for name, group in window.groups.items()
            for linear in group.linears
        }
        return pruner.update(window, weights)

    return update


def masked(pruner: LearnedMask) -> Callable[[Window], dict[str, Tensor]]:
    def refine(window: Window) -> dict[str, Tensor]:
        return pruner.refine(window, NoPermutation().learn(window))

    return refine


SHORT = {"steps": 6, "batch": 3, "precision": "model"}
WORK = {
    "block-adam": learned(Lcp(block=8, start=NoPermutation(), opening=4, **SHORT)),
    "adamw": learned(Lcp(block=8, start=NoPermutation(), optimiser="adamw", scaled=True, **SHORT)),
    "last": learned(Lcp(block=8, start=NoPermutation(), select="last", fresh=False, **SHORT)),
    "learned-mask": masked(LearnedMask(learning_rate=0.1, **SHORT)),
    "distil": distilled(Distil(weight_decay=0.1, **SHORT)),
}


@pytest.mark.usefixtures("at_every_step")
@pytest.mark.parametrize("name", WORK)
def test_it_goes_on_to_the_same_bits(name: str, made: list[int]) -> None:
    whole = MemoryCheckpoints()
    window, steps = window_with(whole)
    expected = WORK[name](window)
    assert made == [1, 2, 3, 4, 5, 6]
    assert len(whole.moments) == 6
    for done, moment in enumerate(whole.moments, 1):
        made.clear()
        window, again = window_with(MemoryCheckpoints(moment))
        result = WORK[name](window)
        assert made == list(range(done + 1, 7))
        assert list(result) == list(expected)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in result.items())
        # Its course is whole, too.
        assert again == steps


def test_a_training_of_minutes_keeps_nothing() -> None:
    kept = MemoryCheckpoints()
    WORK["block-adam"](window_with(kept)[0])
    assert not kept.moments


@pytest.mark.usefixtures("at_every_step")
def test_where_nothing_is_kept_nothing_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "_sampled", None)
    WORK["block-adam"](toy_window())


@pytest.mark.usefixtures("at_every_step")
def test_another_beginning_is_another_training(made: list[int]) -> None:
    kept = MemoryCheckpoints()
    WORK["block-adam"](window_with(kept)[0])
    made.clear()
    other = Lcp(block=8, start=NoPermutation(), identity=0.5, opening=4, **SHORT)
    learned(other)(window_with(MemoryCheckpoints(kept.moments[2]))[0])
    assert made == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("at_every_step")
def test_what_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "MOST_BYTES", 1000)
    kept = MemoryCheckpoints()
    WORK["block-adam"](window_with(kept)[0])
    assert not kept.moments


@attrs.define
class Fall(Trainee[Any]):
    """Follows the loss ``x²``; some steps have no finite one."""

    outcome: Callable[[float], Any]
    resumable = True  # type: ignore[misc]
    parameter: Tensor = attrs.field(factory=lambda: torch.tensor([3.0], requires_grad=True))
    optimiser: torch.optim.Optimizer = attrs.field(
        default=attrs.Factory(lambda self: BlockAdam([self.parameter], 0.1), True)
    )

    def weights(self, at: Step) -> Mapping[str, Tensor]:
        return {"x": self.parameter, "bad": torch.tensor(float(at.number == 2))}

    def result(self, at: Step) -> tuple[Any, Mapping[str, Tensor]]:
        return self.outcome(self.parameter.item()), {"x": self.parameter}

    def __call__(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        loss = weights["x"].square().sum()
        return loss * math.nan if weights["bad"] else loss


def fallen(kept: MemoryCheckpoints, outcome: Callable[[float], Any], **changes: Any) -> Any:
    trainee = Fall(outcome)
    for name, value in changes.items():
        setattr(trainee, name, value)
    options: dict[str, Any] = {
        "rate": lambda step, steps: 0.5,
        "count": StepCount(5),
        "batch": 2,
        "fresh": True,
        "best": False,
    }
    return train(trainee, window_with(kept)[0], trainee, **options)  # type: ignore[arg-type]


def tensors(value: float) -> dict[str, Tensor]:
    return {"x": torch.tensor(value)}


@pytest.mark.usefixtures("at_every_step")
def test_skipped_steps_are_remembered() -> None:
    kept = MemoryCheckpoints()
    expected = fallen(kept, tensors)
    assert len(kept.moments) == 5
    # The rate was halved by the step that was skipped.
    assert fallen(MemoryCheckpoints(kept.moments[3]), tensors) == expected


class Quiet(Fall):
    """One that has not said that it can go on."""

    resumable = False  # type: ignore[misc]


@pytest.mark.usefixtures("at_every_step")
def test_only_those_that_say_that_they_can_go_on_are_kept() -> None:
    kept, trainee = MemoryCheckpoints(), Quiet(tensors)
    train(trainee, window_with(kept)[0], trainee, rate=lambda *_: 0.5, count=StepCount(3),
          batch=2, fresh=True, best=False)  # type: ignore[arg-type]  # fmt: skip
    assert not kept.moments


@pytest.mark.usefixtures("at_every_step")
@pytest.mark.parametrize("outcome", [lambda value: value, lambda value: [value]])
def test_a_result_that_is_no_tensors_is_not_kept(outcome: Callable[[float], Any]) -> None:
    kept, trainee = MemoryCheckpoints(), Held(outcome)
    train(trainee, window_with(kept)[0], trainee, rate=lambda *_: 0.5, count=StepCount(3),
          batch=2, fresh=True, best=True)  # type: ignore[arg-type]  # fmt: skip
    assert not kept.moments


class Held(Fall):
    """With a loss on held-out text."""

    def held_out(self, weights: Mapping[str, Tensor], batch: int) -> float:
        return float(weights["x"].square())


def test_a_time_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("permllm.training.budget.time.monotonic", lambda: now)
    first = StepCount(1, 60.0)
    now = 110.0
    assert first.spent() == (10.0, None)
    first.sized(4, 0.5)
    now = 130.0
    assert first.spent() == (30.0, 20.0)
    expected = first.total(10)
    now = 5000.0
    second = StepCount(1, 60.0)
    second.go_on(30.0, 20.0)
    # Ten steps in twenty seconds, and half a minute left.
    assert second.total(10) == expected == 25
