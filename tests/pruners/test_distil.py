"""Distillation: what is cut stays cut, and what is kept comes nearer to the dense model."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from permllm.components import Pruner
from permllm.contexts.window import Window
from permllm.core.patterns import nm_mask
from permllm.core.statistics import GRAM
from permllm.pruners.distil import RATE, Distil, KeptWeights
from permllm.pruners.learned_mask import LearnedMask
from permllm.pruners.mask import Mask
from permllm.pruners.sparsegpt import SparseGpt
from permllm.testing import check_pruner
from permllm.testing.windows import toy_window
from permllm.training.loop import Step, train_step
from permllm.training.losses import WindowLoss


def pruned(window: Window) -> dict[str, Tensor]:
    """Every weight of a window under the mask of its scores, in original order."""
    return {
        linear: window.weight(linear) * nm_mask(window.scores(linear), window.pattern(name))
        for name, group in window.groups.items()
        for linear in group.linears
    }


@pytest.mark.parametrize("mask", [Mask(), SparseGpt()], ids=lambda pruner: pruner.name)
def test_contract(mask: Pruner) -> None:
    check_pruner(Distil(mask=mask, steps=2, batch=2))


def test_it_is_what_the_pruner_of_the_mask_is() -> None:
    assert Distil().needs == ()
    assert not Distil().sequential
    assert Distil(mask=SparseGpt()).needs == (GRAM,)
    assert Distil(mask=SparseGpt()).sequential


@pytest.mark.parametrize("loss", ["kl", "cosine"])
def test_the_loss_on_held_out_sequences_falls(loss: str) -> None:
    window = toy_window(sequences=32, held_out=4)
    start = pruned(window)
    pruner = Distil(steps=40, batch=4, learning_rate=3e-3, loss=loss)
    updated = pruner.update(window, start)
    measure = WindowLoss.of(window, "kl", "model")
    assert measure.held_out(updated, 4) < 0.9 * measure.held_out(start, 4)


def test_only_its_own_linears_change() -> None:
    window = toy_window()
    others = [linear for linear in window.linears if linear.endswith("down_proj")]
    pruner = Distil(steps=2, batch=2, learning_rate=0.01, select="last")
    window.pruners = {linear: Mask() if linear in others else pruner for linear in window.linears}
    start = pruned(window)
    updated = pruner.update(window, start)
    assert set(updated) == set(window.linears) - set(others)
    assert all(not torch.equal(weight, start[linear]) for linear, weight in updated.items())


def test_nothing_changes_where_training_does_not_help() -> None:
    window = toy_window()
    start = pruned(window)
    updated = Distil(steps=4, batch=2, learning_rate=10.0).update(window, start)
    assert all(torch.equal(weight, start[linear]) for linear, weight in updated.items())


def rates(pruner: Distil, window: Window, start: dict[str, Tensor]) -> list[float]:
    """The learning rates of a training."""
    found: list[float] = []
    window.on_step = lambda step, total, figures: found.append(figures["learning_rate"])
    pruner.update(window, start)
    return found


def test_the_rate_is_a_share_of_what_was_cut() -> None:
    window = toy_window()
    start = pruned(window)
    cuts = torch.cat([(window.weight(name) - one).flatten() for name, one in start.items()])
    (rate,) = rates(Distil(steps=1, batch=2), window, start)
    assert rate == pytest.approx(RATE * cuts.double().square().mean().sqrt().item(), rel=1e-5)
    (given,) = rates(Distil(steps=1, batch=2, learning_rate=0.25), window, start)
    assert given == 0.25
    # What other pruners prune does not count.
    pruner = Distil(steps=1, batch=2)
    own = window.linears[0]
    window.pruners = {name: pruner if name == own else Mask() for name in window.linears}
    (rate,) = rates(pruner, window, start)
    cut = (window.weight(own) - start[own]).double()
    assert rate == pytest.approx(RATE * cut.square().mean().sqrt().item(), rel=1e-5)


@attrs.frozen
class Recorder(Pruner):
    """Gives each argument back, so that it can be seen what it was."""

    name = "recorder"
    needs = (GRAM,)

    def sequences(self, calibration: int) -> int:
        return 3 * calibration

    def refine(self, *args: Any) -> Any:
        return args

    def prune(self, *args: Any) -> Any:
        return args


def test_what_is_kept_is_for_the_other_pruner_to_say() -> None:
    pruner, arguments = Distil(mask=Recorder()), tuple(object() for _ in range(4))
    assert pruner.prune(*arguments) == arguments  # type: ignore[arg-type]
    window = toy_window()
    others = window.linears[3:]
    window.pruners = {linear: Mask() if linear in others else pruner for linear in window.linears}
    seen, permutations = pruner.refine(window, {})
    assert permutations == {}
    assert isinstance(seen, Window)
    assert seen.linears_of(pruner.mask) == window.linears_of(pruner) == window.linears[:3]
    assert seen.linears_of(Mask()) == others


def test_a_mask_that_is_learned_is_trained_on() -> None:
    """The weights that a learned mask keeps, and no others, are those that train."""
    window = toy_window()
    mask = LearnedMask(steps=2, batch=2, learning_rate=0.5, select="last")
    pruner = Distil(mask=mask, steps=2, batch=2, select="last")
    window.pruners = dict.fromkeys(window.linears, pruner)
    order = {name: torch.arange(group.channels) for name, group in window.groups.items()}
    learned = pruner.refine(window, order)
    assert list(learned) == window.linears
    start = {linear: window.weight(linear) * learned[linear] for linear in window.linears}
    for linear, weight in pruner.update(window, start).items():
        assert torch.equal(weight != 0, start[linear] != 0)
        assert not torch.equal(weight != 0, pruned(window)[linear] != 0)


def test_sequences_are_those_of_training_or_of_the_other_pruner() -> None:
    assert Distil(mask=Recorder(), steps=1, batch=1).sequences(5) == 15
    assert Distil(mask=Recorder(), steps=5, batch=4).sequences(5) == 20


def adamw(start: Tensor, gradients: list[Tensor], rates: list[float], decay: float) -> Tensor:
    """AdamW's steps, written out in float64; zeros stay."""
    x, mean, square = start.double(), torch.zeros(()), torch.zeros(())
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = gradient.double() * (start != 0)
        mean, square = 0.6 * mean + 0.4 * g, 0.95 * square + 0.05 * g * g
        root = (square / (1 - 0.95**t)).sqrt() + 1e-8
        x = x * (1 - rate * decay) - rate * mean / (1 - 0.6**t) / root
    return x


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_kept_weights_take_the_steps_of_adamw(decay: float) -> None:
    window = toy_window()
    start = pruned(window)
    trainee = KeptWeights(Distil(weight_decay=decay), window, start)
    rng = torch.Generator().manual_seed(0)
    directions = [
        {name: torch.randn(weight.shape, generator=rng) for name, weight in start.items()}
        for _ in range(3)
    ]
    for number, (direction, rate) in enumerate(zip(directions, (0.1, 0.2, 0.05), strict=True), 1):
        train_step(
            trainee,
            lambda weights, rows, along=direction: torch.stack(
                [(weights[name] * along[name]).sum() for name in weights]
            ).sum(),  # type: ignore[arg-type]
            window.learning[:1],
            Step(number, 3),
            rate,
        )
    trained, everything = trainee.result(Step(3, 3))
    assert trained.keys() == everything.keys() == start.keys()
    for name, weight in start.items():
        gradients = [direction[name] for direction in directions]
        expected = adamw(weight, gradients, [0.1, 0.2, 0.05], decay)
        torch.testing.assert_close(trained[name].double(), expected, rtol=1e-4, atol=1e-5)
        assert not trained[name][weight == 0].any()


def test_weights_are_trained_in_float32_and_given_in_the_models_type() -> None:
    window = toy_window()
    start = {name: weight.bfloat16() for name, weight in pruned(window).items()}
    others = window.linears[0]
    pruner = Distil(steps=1)
    window.pruners = {name: Mask() if name == others else pruner for name in window.linears}
    trainee = KeptWeights(pruner, window, start)
    assert set(trainee.trained) == set(window.linears) - {others}
    assert all(weight.dtype == torch.float32 for weight in trainee.trained.values())
    weights = trainee.weights(Step(1, 1))
    assert all(torch.equal(weights[name], start[name]) for name in start)
    assert all(weight.dtype == torch.bfloat16 for weight in weights.values())
    result, _ = trainee.result(Step(1, 1))
    for name, weight in result.items():
        weight.fill_(7.0)  # what is kept for later is no view of what is trained
        assert torch.equal(trainee.weights(Step(1, 1))[name], start[name])


def test_what_is_trained_is_no_view_of_what_is_given() -> None:
    window = toy_window()
    start = pruned(window)
    before = {name: weight.clone() for name, weight in start.items()}
    KeptWeights(Distil(), window, start).trained[window.linears[0]].data.fill_(7.0)
    assert all(torch.equal(weight, before[name]) for name, weight in start.items())
