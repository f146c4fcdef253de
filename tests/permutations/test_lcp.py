"""The learnable channel permutation: options, schedules, selection and that it learns."""

from __future__ import annotations

import itertools
import math
from typing import Any

import attrs
import pytest
import torch

from permllm.components import PermutationLearner
from permllm.contexts.window import Window
from permllm.core.durations import Duration
from permllm.core.permutations import is_permutation
from permllm.permutations.cp import Cp
from permllm.permutations.groupwise import first_permutations
from permllm.permutations.lcp import Lcp, LearnedPermutations
from permllm.permutations.none import NoPermutation
from permllm.pipeline.reading import read_mapping
from permllm.registry import Registry
from permllm.testing import check_permutation_learner
from permllm.testing.windows import toy_window
from permllm.training.budget import START_SHARE
from permllm.training.loop import Step

SMALL = {"block": 8, "batch": 2, "precision": "model"}


def small(**options: Any) -> Lcp:
    return Lcp(**SMALL | {"start": NoPermutation(), "steps": 4} | options)


def learned(learner: Lcp, window: Window) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    figures: list[dict[str, float]] = []
    window.on_step = lambda step, total, found: figures.append(found)
    return learner.learn(window), figures


def held_out_loss(learner: Lcp, window: Window, permutations: dict[str, torch.Tensor]) -> float:
    """The loss of fixed orders: training that has not begun, without noise."""
    still = attrs.evolve(learner, identity=1.0, noise=0.0, scaled=False)
    weights = LearnedPermutations(still, window, permutations).result(Step(0, 1))[1]
    return still.window_loss(window).held_out(weights, still.batch)


@pytest.mark.parametrize("loss", ["kl", "cosine"])
def test_contract(loss: str) -> None:
    check_permutation_learner(small(loss=loss, steps=2))


@pytest.mark.parametrize("gradient", ["placement", "soft"])
@pytest.mark.parametrize("optimiser", ["block-adam", "adam"])
def test_contract_of_gradients_and_optimisers(gradient: str, optimiser: str) -> None:
    check_permutation_learner(small(gradient=gradient, optimiser=optimiser, steps=2))


def test_preset_paper_is_the_published_setting() -> None:
    pipeline = read_mapping(
        {
            "model": {"source": "hub", "id": "some/model"},
            "pattern": "2:4",
            "layers": {"permutation": {"name": "lcp", "preset": "paper", "passes": 10}},
        },
        Registry.load(),
    )
    lcp = pipeline.layers.permutation
    assert isinstance(lcp, Lcp)
    assert (lcp.block, lcp.sinkhorn_rounds, lcp.batch, lcp.passes) == (64, 5, 16, 10)
    assert (lcp.temperature_start, lcp.temperature_end) == (1.0, 0.1)
    assert (lcp.optimiser, lcp.learning_rate, lcp.weight_decay) == ("adamw", 1e-3, 0.1)
    assert lcp.gradient == "soft"
    assert (lcp.loss, lcp.fresh, lcp.select, lcp.schedule) == ("cosine", False, "last", "cosine")
    assert isinstance(lcp.start, NoPermutation)
    assert Lcp.presets["paper"]["passes"] == 50


def test_learns_the_sequences_that_it_sees() -> None:
    window = toy_window(sequences=4)
    window.sequences = attrs.evolve(window.sequences, calibration=4)
    options = {"batch": 4, "fresh": False, "select": "last", "steps": 60}
    _, figures = learned(small(**options, learning_rate=0.05), window)
    first = figures[0]["loss"]
    assert min(step["loss"] for step in figures) < 0.9 * first


@pytest.mark.parametrize("start", [NoPermutation(), Cp(rounds=2, steps=0)])
def test_the_best_on_held_out_is_never_worse_than_its_start(start: Any) -> None:
    window = toy_window()
    learner = small(start=start, steps=12, learning_rate=0.1, noise=0.0)
    permutations, figures = learned(learner, window)
    found = held_out_loss(learner, window, permutations)
    assert found <= held_out_loss(learner, window, start.learn(window)) + 1e-6
    measured = [step["held_out_loss"] for step in figures if "held_out_loss" in step]
    assert measured
    assert found <= min(measured) + 1e-6


def test_blocks_that_do_not_divide_the_channels() -> None:
    window = toy_window()
    channels = {name: group.channels for name, group in window.groups.items()}
    permutations, _ = learned(small(block=12, steps=3, learning_rate=0.5), window)
    assert all(
        is_permutation(permutation, channels[name]) for name, permutation in permutations.items()
    )


def test_blocks_stay_within_their_start_order() -> None:
    window = toy_window()
    permutations, _ = learned(small(steps=6, learning_rate=0.5, select="last"), window)
    moved = False
    for permutation in permutations.values():
        blocks = permutation.view(-1, 8)
        expected = torch.arange(len(permutation)).view(-1, 8)
        assert torch.equal(blocks.sort(1).values, expected)
        moved = moved or not torch.equal(blocks, expected)
    assert moved


def test_schedules() -> None:
    learner = small(steps=5, temperature_start=1.0, temperature_end=0.2, learning_rate=0.1)
    trainee = LearnedPermutations(learner, toy_window(), learner.start.learn(toy_window()))
    temperatures = [trainee.temperature(Step(step, 5)) for step in range(1, 6)]
    assert temperatures == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    rates = [learner.learning_rate_at(step, 5) for step in range(1, 6)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 5)) for i in range(5)])


def test_fresh_sequences_are_asked_for() -> None:
    learner = small(steps=4, batch=2)
    assert learner.sequences(3) == 8
    assert attrs.evolve(learner, fresh=False).sequences(3) == 3


def test_steps_follow_passes_unless_given() -> None:
    assert small(steps=None, passes=3).training_steps(5) == 9
    assert small(steps=7, passes=3).training_steps(5) == 7


def test_a_budget_holds_the_search_to_its_share() -> None:
    window = toy_window()
    asked: list[PermutationLearner] = []

    def find(learner: PermutationLearner, window: Window) -> dict[str, torch.Tensor]:
        asked.append(learner)
        return NoPermutation().learn(window)

    window.find_permutations = find
    groups = len(window.groups)
    own = Cp(time_limit=3.0)
    for learner, budget in ((Cp(), None), (Cp(), 1.0), (Cp(), 1e4), (own, 1.0), (Lcp(), 1.0)):
        first_permutations(learner, window, budget)
    assert asked == [Cp(), Cp(time_limit=START_SHARE / groups), Cp(), own, Lcp()]


def test_a_budget_ends_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr("permllm.training.budget.time.monotonic", lambda: float(next(seconds)))
    # A second goes by whenever somebody looks at the clock: at every step, and before the first.
    _, figures = learned(small(steps=None, budget=Duration(12.0)), toy_window(sequences=8))
    assert len(figures) in (8, 9, 10)
    assert figures[-1]["temperature"] == pytest.approx(0.1)
