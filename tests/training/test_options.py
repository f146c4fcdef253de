"""What the options of a training come to: steps, sequences, rates, losses and costs."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.durations import Duration
from permllm.permutations.cp import Cp
from permllm.permutations.lcp import Lcp
from permllm.testing.windows import toy_window
from permllm.training.budget import StepCount
from permllm.training.losses import LOSSES
from permllm.training.options import TrainingOptions


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (TrainingOptions(passes=3, batch=2), 9),
        (TrainingOptions(passes=3, batch=4), 6),
        (TrainingOptions(passes=3, steps=7), 7),
        (TrainingOptions(passes=3, steps=7, budget=Duration(20.0)), 20),
    ],
)
def test_a_budget_comes_before_steps_and_steps_before_passes(
    options: TrainingOptions, steps: int
) -> None:
    assert options.training_steps(5) == steps


def test_fresh_sequences_are_those_of_every_step() -> None:
    options = TrainingOptions(steps=4, batch=3)
    assert options.sequences(5) == 12
    assert options.sequences(20) == 20
    assert attrs.evolve(options, fresh=False).sequences(5) == 5
    passes = TrainingOptions(passes=2, batch=3)
    assert passes.sequences(4) == 2 * 2 * 3


def test_a_cost_is_that_of_all_steps_or_of_the_time() -> None:
    workload = Workload(sequences=9, length=32, groups=10)
    passes = TrainingOptions(passes=2, batch=4)
    assert passes.cost(workload) == ComponentCost(trained=2 * 3 * 4, batch=4)
    timed = attrs.evolve(passes, budget=Duration(30.0))
    assert timed.cost(workload) == ComponentCost(batch=4, seconds=30.0)


def test_a_cost_includes_that_of_components_among_the_options() -> None:
    workload = Workload(sequences=9, length=32, groups=10)
    cost = Lcp(steps=3, batch=4, start=Cp(time_limit=2.0)).cost(workload)
    assert cost == ComponentCost(trained=12, batch=4, search_seconds=20.0)


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_the_rate_falls_to_its_end_along_half_a_cosine(end: float) -> None:
    options = TrainingOptions(learning_rate=0.5, learning_rate_end=end)
    rates = [options.learning_rate_at(step, 8) for step in range(1, 9)]
    expected = [end + (0.5 - end) * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert rates == pytest.approx(expected)


def test_a_constant_rate_stays() -> None:
    options = TrainingOptions(learning_rate=0.5, learning_rate_end=0.1, schedule="constant")
    assert [options.learning_rate_at(step, 8) for step in (1, 5, 8)] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("recompute", [True, False])
def test_the_loss_is_the_one_that_is_named(loss: str, recompute: bool) -> None:
    window = toy_window()
    made = TrainingOptions(loss=loss, precision="bfloat16", recompute=recompute).window_loss(window)
    assert made.window is window
    assert made.distance is LOSSES[loss]
    assert made.bfloat16
    assert made.recompute == recompute
    assert not TrainingOptions(loss=loss, precision="model").window_loss(window).bfloat16


def test_a_window_gets_the_steps_of_its_calibration_and_its_layers_share_of_a_time() -> None:
    whole, half = toy_window(sequences=8), toy_window(sequences=8, layers=range(1))
    options = TrainingOptions(passes=3, batch=2)
    assert (options.count(whole).steps, options.count(whole).seconds) == (6, None)
    timed = attrs.evolve(options, budget=Duration(60.0))
    assert (timed.count(whole).steps, timed.count(whole).seconds) == (60, 60.0)
    assert timed.count(half).seconds == 30.0


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("select", ["best", "last"])
def test_all_options_reach_the_loop(
    monkeypatch: pytest.MonkeyPatch, counted: bool, select: str
) -> None:
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def train(*args: Any, **options: Any) -> str:
        asked.append((args, options))
        return "kept"

    monkeypatch.setattr("permllm.training.options.train", train)
    window = toy_window()
    trainee: Any = object()
    options = TrainingOptions(
        steps=7, batch=3, fresh=counted, select=select, loss="cosine", learning_rate=0.5
    )
    count = StepCount(9) if counted else None
    assert options.train(trainee, window, count) == "kept"
    ((who, where, loss), given) = asked[0]
    assert who is trainee
    assert where is window
    assert loss.window is window
    assert loss.distance is LOSSES["cosine"]
    assert given["rate"](1, 7) == 0.5
    assert given["count"] is count if counted else given["count"].steps == 7
    assert (given["batch"], given["fresh"], given["best"]) == (3, counted, select == "best")
