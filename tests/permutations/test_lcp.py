"""The learnable channel permutation: options, schedules, selection and that it learns."""

from __future__ import annotations

import itertools
import math
from typing import Any

import attrs
import pytest
import torch

from permllm.components import PermutationLearner
from permllm.contexts.cost import Workload
from permllm.contexts.window import Window
from permllm.core.durations import Duration
from permllm.core.permutations import is_permutation
from permllm.permutations.cp import Cp
from permllm.permutations.lcp import Lcp, LearnedPermutations, first_logits, first_scales
from permllm.permutations.none import NoPermutation
from permllm.pipeline.reading import read_mapping
from permllm.registry import Registry
from permllm.testing import check_permutation_learner
from permllm.testing.windows import toy_window
from permllm.training.blocks import harden
from permllm.training.budget import START_SHARE
from permllm.training.loop import Step
from permllm.training.optimisers import BlockAdam

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


def test_a_budget_ends_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr("permllm.training.budget.time.monotonic", lambda: float(next(seconds)))
    # A second goes by whenever somebody looks at the clock: at every step, and before the first.
    _, figures = learned(small(steps=None, budget=Duration(12.0)), toy_window(sequences=8))
    assert len(figures) in (8, 9, 10)
    assert figures[-1]["temperature"] == pytest.approx(0.1)


# --- that each ingredient does what it says ---------------------------------------------


@pytest.mark.parametrize("block", [8, 12])
def test_the_first_logits_lean_towards_identity_with_noise_around_it(block: int) -> None:
    window = toy_window()
    learner = small(identity=2.0, noise=0.25, block=block)
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    for size, logits in trainee.logits.by_size.items():
        lean = torch.eye(size).expand_as(logits)
        noise = logits.detach() - 2.0 * lean
        assert float(noise.abs().max()) <= 0.25
        assert float(noise.max()) > 0.2
        assert float(noise.min()) < -0.2


def test_without_scales_logits_are_taken_as_they_are() -> None:
    window, learner = toy_window(), small(identity=3.0)
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    assert trainee.scaled() is trainee.logits
    assert trainee.scales is None


@pytest.mark.parametrize("number", [1, 3, 5])
def test_soft_permutations_are_sinkhorns_at_the_steps_temperature(number: int) -> None:
    window = toy_window()
    learner = small(temperature_start=0.9, temperature_end=0.1, sinkhorn_rounds=3, noise=1.0)
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    temperature = 0.9 - 0.2 * (number - 1)
    for size, soft in trainee.soft(Step(number, 5)).by_size.items():
        expected = torch.exp(trainee.logits.by_size[size].detach().double() / temperature)
        for _ in range(3):
            expected = expected / expected.sum(-1, keepdim=True)
            expected = expected / expected.sum(-2, keepdim=True)
        torch.testing.assert_close(soft.detach().double(), expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_place_is_what_the_loss_gains_there() -> None:
    """Brute force: for every block, channel and place, what the mask would gain and lose."""
    window, learner = toy_window(), small(normalise_scores=True)
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    soft = trainee.soft(Step(1, 4)).map(lambda each: each.detach().requires_grad_())
    hard = harden(soft)
    weights = trainee.masked(soft, hard)
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    learner.window_loss(window)(leaves, window.learning[:2]).backward()
    torch.autograd.backward(list(weights.values()), [leaves[name].grad for name in weights])
    for group, runs, places in zip(
        trainee.groups.groups,
        trainee.groups.of_groups(soft.map(lambda each: each.grad)),  # type: ignore[arg-type, return-value]
        trainee.groups.of_groups(hard),
        strict=True,
    ):
        for block in range(len(runs[0])):
            channels = range(8 * block, 8 * block + 8)
            expected = sum(
                placement_gains(
                    window.scores(linear)[:, channels],
                    (leaves[linear].grad * window.weight(linear))[:, channels],
                    places[0][block].tolist(),
                )
                for linear in group.weights
            )
            torch.testing.assert_close(runs[0][block], expected, rtol=1e-3, atol=1e-7)


def placement_gains(
    scores: torch.Tensor, gradient: torch.Tensor, channel_at: list[int]
) -> torch.Tensor:
    """``[B, B]``: for channel i at place j, over all rows, what it brings less what it ousts."""
    size = len(channel_at)
    gains = torch.zeros(size, size)
    for i, j, row in itertools.product(range(size), range(size), range(len(scores))):
        group = [channel_at[p] for p in range(4 * (j // 4), 4 * (j // 4) + 4) if p != j]
        second = sorted(group, key=lambda c: -float(scores[row, c]))[1]
        if scores[row, i] > scores[row, second]:
            gains[i, j] += gradient[row, i] - gradient[row, second]
    return gains


def test_a_step_goes_down_the_gradient() -> None:
    """A small step along it makes the loss of the soft mask smaller, on the same sequences."""
    window = toy_window(sequences=4)
    window.sequences = attrs.evolve(window.sequences, calibration=4)
    options = {"batch": 4, "fresh": False, "select": "last", "noise": 0.0}
    learner = small(**options, learning_rate=0.05, steps=40, gradient="placement")
    _, figures = learned(learner, window)
    half = len(figures) // 2
    early, late = figures[:half], figures[half:]
    assert sum(step["loss"] for step in late) < sum(step["loss"] for step in early)


@pytest.mark.parametrize("optimiser", ["block-adam", "adam", "adamw"])
def test_the_optimiser_is_the_one_that_is_asked_for(optimiser: str) -> None:
    parameter = torch.zeros(1, 2, 2, requires_grad=True)
    made = small(optimiser=optimiser, learning_rate=0.3, weight_decay=0.2, opening=5).optimiser_of(
        [parameter]
    )
    kinds = {"block-adam": BlockAdam, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    assert type(made) is kinds[optimiser]
    (settings,) = made.param_groups
    assert settings["lr"] == 0.3
    assert settings.get("weight_decay", 0) == (0.2 if optimiser == "adamw" else 0)
    assert settings.get("opening", 5) == 5


def test_blocks_are_cut_from_the_order_of_the_start() -> None:
    window = toy_window()

    @attrs.frozen
    class Backwards(PermutationLearner):
        """The channels from the last to the first."""

        name = "backwards"

        def learn(self, window: Window) -> dict[str, torch.Tensor]:
            return {n: torch.arange(g.channels).flip(0) for n, g in window.groups.items()}

    learner = small(start=Backwards(), steps=1, learning_rate=0.0, noise=0.0, identity=1.0)
    for name, permutation in learner.learn(window).items():
        expected = torch.arange(window.groups[name].channels).flip(0)
        assert torch.equal(permutation, expected)


def test_a_cost_is_that_of_training_and_of_the_search_before_it() -> None:
    workload = Workload(sequences=8, length=32, groups=10)
    cost = small(steps=6, start=Cp(time_limit=2.0)).cost(workload)
    assert (cost.trained, cost.batch, cost.search_seconds, cost.seconds) == (12, 2, 20.0, 0.0)
    timed = small(steps=None, budget=Duration(30.0), start=Cp()).cost(workload)
    assert (timed.trained, timed.batch, timed.search_seconds, timed.seconds) == (0, 2, 2.5, 30.0)


@pytest.mark.parametrize("scaled", [True, False])
def test_the_first_logits_are_drawn_from_the_seed_of_the_window(scaled: bool) -> None:
    window = toy_window(seed=3)
    learner = small(identity=0.5, noise=0.25, block=12, scaled=scaled)
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    rng = torch.Generator().manual_seed(3)
    for size, logits in trainee.logits.by_size.items():
        noise = 0.25 * (2 * torch.rand(logits.shape, generator=rng) - 1)
        expected = (0.5 * torch.eye(size) + noise) / (math.sqrt(size) if scaled else 1)
        torch.testing.assert_close(logits.detach(), expected)
        assert logits.requires_grad
        assert logits.is_leaf


def test_parameters_lie_on_the_windows_device() -> None:
    window, learner = toy_window(), small(scaled=True)
    groups = LearnedPermutations(learner, window, learner.start.learn(window)).groups
    elsewhere = torch.device("meta")
    made = [
        *first_logits(learner, groups, 0, elsewhere).tensors,
        *first_scales(groups, elsewhere).tensors,
    ]
    assert made
    assert all(tensor.device == elsewhere and tensor.requires_grad for tensor in made)


@pytest.mark.parametrize("scaled", [True, False])
def test_logits_and_scales_are_what_the_optimiser_trains(scaled: bool) -> None:
    window, learner = toy_window(), small(scaled=scaled)
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    (settings,) = trainee.optimiser.param_groups
    expected = [*trainee.logits.tensors, *(trainee.scales.tensors if trainee.scales else [])]
    assert [id(tensor) for tensor in settings["params"]] == [id(tensor) for tensor in expected]
    assert (trainee.scales is not None) == scaled


@pytest.mark.parametrize("precision", ["model", "bfloat16"])
@pytest.mark.parametrize("normalise", [True, False])
def test_weights_and_scores_are_as_the_options_want_them(precision: str, normalise: bool) -> None:
    window = toy_window()
    learner = small(precision=precision, normalise_scores=normalise)
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    for group in trainee.groups.groups:
        for linear, weight in group.weights.items():
            plain = window.weight(linear).dtype
            assert weight.dtype == (torch.bfloat16 if precision == "bfloat16" else plain)
            scores = window.scores(linear).T
            expected = scores / scores.mean() if normalise else scores
            torch.testing.assert_close(group.scores[linear], expected.to(plain))


@pytest.mark.parametrize("gradient", ["placement", "soft"])
def test_the_gradient_is_that_of_the_options(gradient: str) -> None:
    window, learner = toy_window(), small(gradient=gradient)
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    soft = trainee.soft(Step(1, 4)).map(lambda each: each.detach().requires_grad_())
    hard = harden(soft)
    by_option = trainee.masked(soft, hard)
    direct = trainee.groups.masked_weights(soft, hard, soft_mask=gradient == "soft")
    for one, other in zip(by_option.values(), direct.values(), strict=True):
        first, second = (
            torch.autograd.grad(weight.square().sum(), soft.tensors, allow_unused=True)
            for weight in (one, other)
        )
        assert all(
            (a is None and b is None) or torch.equal(a, b)
            for a, b in zip(first, second, strict=True)
        )


def test_a_budget_is_for_the_search_to_start_from_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr("permllm.training.budget.time.monotonic", lambda: float(next(seconds)))
    window, asked = toy_window(), []

    def find(learner: PermutationLearner, window: Window) -> dict[str, torch.Tensor]:
        asked.append(learner)
        return NoPermutation().learn(window)

    window.find_permutations = find
    small(steps=None, budget=Duration(4.0), start=Cp()).learn(window)
    assert asked == [Cp(time_limit=4.0 * START_SHARE / len(window.groups))]


def test_what_the_search_takes_is_lost_to_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, window = [100.0], toy_window(sequences=8)
    monkeypatch.setattr("permllm.training.budget.time.monotonic", lambda: clock[0])

    def find(learner: PermutationLearner, window: Window) -> dict[str, torch.Tensor]:
        clock[0] += 7.0
        return NoPermutation().learn(window)

    class Slow(LearnedPermutations):
        def weights(self, at: Step) -> dict[str, torch.Tensor]:
            clock[0] += 1.0
            return super().weights(at)

    monkeypatch.setattr("permllm.permutations.lcp.LearnedPermutations", Slow)
    window.find_permutations = find
    _, figures = learned(small(steps=None, budget=Duration(10.0), select="last"), window)
    assert len(figures) == 3


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_result_is_the_hard_permutation_and_the_weights_under_it(number: int) -> None:
    window, learner = toy_window(), small(noise=1.0)
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    at = Step(number, 4)
    permutations, weights = trainee.result(at)
    hard = harden(trainee.soft(at))
    for name, permutation in trainee.groups.permutations(hard).items():
        assert torch.equal(permutations[name], permutation)
    for name, weight in trainee.weights(at).items():
        assert torch.equal(weights[name], weight)
    assert trainee.figures(at) == {"temperature": trainee.temperature(at)}
