"""The learner: options, schedules, selection, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import torch
from permllm_matching.learner import LearnedCosts, Matching, normalised
from torch import Tensor

from permllm.contexts.window import Window
from permllm.core.permutations import is_permutation
from permllm.permutations.cp import Cp
from permllm.permutations.none import NoPermutation
from permllm.testing import check_permutation_learner, read_pipeline
from permllm.testing.windows import toy_window
from permllm.training.loop import Step, train_step

SMALL = {"block": 8, "batch": 2, "precision": "model", "steps": 4}


def small(**options: Any) -> Matching:
    return Matching(**SMALL | {"start": NoPermutation()} | options)


def learned(learner: Matching, window: Window) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    figures: list[dict[str, float]] = []
    window.on_step = lambda step, total, found: figures.append(found)
    return learner.learn(window), figures


def held_out_loss(learner: Matching, window: Window, permutations: dict[str, Tensor]) -> float:
    """The loss of fixed orders: training that has not begun, without noise."""
    still = attrs.evolve(learner, identity=1.0, noise=0.0)
    weights = LearnedCosts(still, window, permutations).result(Step(0, 1))[1]
    return still.window_loss(window).held_out(weights, still.batch)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "kl", "distillation": 0.1},
        {"loss": "cosine", "forward": "soft", "normalise": True, "distance": "smooth-l1"},
    ],
)
def test_contract(options: dict[str, Any]) -> None:
    check_permutation_learner(small(steps=2, **options))


def from_pipeline(permutation: dict[str, Any]) -> Matching:
    pipeline = read_pipeline({"layers": {"permutation": {"name": "matching"} | permutation}})
    assert isinstance(pipeline.layers.permutation, Matching)
    return pipeline.layers.permutation


def test_preset_paper_is_the_published_setting() -> None:
    paper = from_pipeline({"preset": "paper", "passes": 2})
    assert (paper.blocks, paper.forward, paper.normalise) == (4, "soft", True)
    assert (paper.learning_rate, paper.weight_decay, paper.passes) == (1e-4, 0.01, 2)
    assert (paper.loss, paper.distance, paper.distillation) == ("next-token", "smooth-l1", 1e-5)
    assert (paper.fresh, paper.select) == (False, "last")
    assert isinstance(paper.start, NoPermutation)
    assert Matching.presets["paper"]["passes"] == 20


@pytest.mark.parametrize("forward", ["hard", "soft"])
def test_learns_the_sequences_that_it_sees(forward: str) -> None:
    window = toy_window(sequences=4)
    window.sequences = attrs.evolve(window.sequences, calibration=4)
    options = {"batch": 4, "fresh": False, "select": "last", "steps": 60, "learning_rate": 0.05}
    learner = small(forward=forward, **options)
    permutations, figures = learned(learner, window)
    assert figures[-1]["loss"] < 0.9 * figures[0]["loss"]
    # What was learned under the soft matching holds under the hard one.
    window.sequences = attrs.evolve(window.sequences, held_out=window.learning)
    before = held_out_loss(learner, window, learner.start.learn(window))
    assert held_out_loss(learner, window, permutations) < before


@pytest.mark.parametrize("start", [NoPermutation(), Cp(rounds=2, steps=0)])
@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_the_best_on_held_out_is_never_worse_than_its_start(
    start: Any, distillation: float
) -> None:
    window = toy_window()
    learner = small(start=start, steps=8, learning_rate=0.1, noise=0.0, distillation=distillation)
    permutations, figures = learned(learner, window)
    found = held_out_loss(learner, window, permutations)
    assert found <= held_out_loss(learner, window, start.learn(window)) + 1e-6
    measured = [step["held_out_loss"] for step in figures if "held_out_loss" in step]
    assert measured
    assert found <= min(measured) + 1e-6


def test_without_steps_to_learn_the_start_is_what_comes_out() -> None:
    window, start = toy_window(), Cp(rounds=2, steps=0)
    learner = small(start=start, learning_rate=0.0, select="last")
    for name, permutation in learner.learn(window).items():
        assert torch.equal(permutation, start.learn(window)[name])


@pytest.mark.parametrize(
    "options",
    [
        {"forward": "soft"},
        {"normalise": True},
        {"temperature_start": 0.3},
        {"temperature_end": 0.03},
        {"sinkhorn_rounds": 1},
        {"tolerance": 1e-4},
        {"identity": 0.5},
        {"noise": 0.1},
        {"weight_decay": 5.0},
        {"distillation": 3.0},
        {"distillation": 3.0, "distance": "squared"},
        {"loss": "cosine"},
    ],
)
def test_options_make_a_difference(options: dict[str, Any]) -> None:
    # The costs are compared, since different costs may well give one order.
    costs = []
    usual = {"learning_rate": 0.05, "noise": 0.2, "temperature_start": 0.1}
    for learner in (small(**usual), small(**usual | options)):
        window = toy_window()
        trainee = LearnedCosts(learner, window, learner.start.learn(window))
        loss = learner.window_loss(window)
        for number, rows in enumerate((window.learning[:2], window.learning[2:4]), start=1):
            train_step(trainee, loss, rows, Step(number, 4), 0.05)
        costs.append(trainee.costs.by_size[8].detach())
    assert not torch.equal(*costs)


def test_blocks_that_do_not_divide_the_channels() -> None:
    window = toy_window()
    permutations, _ = learned(small(block=12, steps=3, learning_rate=0.5), window)
    for name, group in window.groups.items():
        assert is_permutation(permutations[name], group.channels)


def test_blocks_can_be_counted_instead_of_measured() -> None:
    learner = small(blocks=4)
    assert [learner.block_size(channels) for channels in (32, 48, 50)] == [8, 12, 13]
    assert small(block=16).block_size(48) == 16
    window = toy_window()
    trainee = LearnedCosts(learner, window, learner.start.learn(window))
    for group in trainee.groups.groups:
        assert sum(count for _, count in group.runs) == 4


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


def test_normalised_costs_have_one_scale() -> None:
    cost = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1)
    found = normalised(cost)
    torch.testing.assert_close(found.std((-2, -1), correction=0), torch.ones(3))
    torch.testing.assert_close(normalised(cost * scale + 5), found, atol=1e-3, rtol=1e-3)
    assert bool(normalised(torch.zeros(1, 4, 4)).isfinite().all())


def test_schedules() -> None:
    learner = small(steps=5, temperature_start=1.0, temperature_end=0.2, learning_rate=0.1)
    trainee = LearnedCosts(learner, toy_window(), learner.start.learn(toy_window()))
    temperatures = [trainee.temperature(Step(step, 5)) for step in range(1, 6)]
    assert temperatures == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    rates = [learner.learning_rate_at(step, 5) for step in range(1, 6)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 5)) for i in range(5)])


def test_matchings_begin_at_the_last_steps_prices() -> None:
    learner = small()
    window = toy_window()
    trainee = LearnedCosts(learner, window, learner.start.learn(window))
    assert trainee.prices == {}
    train_step(trainee, learner.window_loss(window), window.learning[:2], Step(1, 4), 0.1)
    before = dict(trainee.prices)
    # Looking at the held-out loss must not change what is learned next.
    trainee.result(Step(1, 4))
    assert before
    assert all(trainee.prices[size] is prices for size, prices in before.items())


def test_steps_and_sequences() -> None:
    assert small(steps=None, passes=3).training_steps(5) == 9
    assert small(steps=7, passes=3).training_steps(5) == 7
    assert small(steps=4).sequences(3) == 8
    assert small(steps=4, fresh=False).sequences(3) == 3
