"""Learned masks: weights stay, and what is kept comes nearer to the dense model."""

from __future__ import annotations

import pytest
import torch

from permllm.core.patterns import Pattern, is_nm, nm_mask
from permllm.core.permutations import invert
from permllm.core.soft_mask import soft_mask
from permllm.pruners.learned_mask import LearnedMask, Masks, first_logits
from permllm.pruners.mask import Mask
from permllm.testing import check_pruner
from permllm.testing.windows import toy_window
from permllm.training.loop import Step
from permllm.training.losses import WindowLoss


def permutations_of(window, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(group.channels, generator=generator)
        for name, group in window.groups.items()
    }


def under(window, permutations, scores):
    """The weights under the hard masks of some scores."""
    weights = {}
    for name, group in window.groups.items():
        order = permutations[name]
        for linear in group.linears:
            mask = nm_mask(scores[linear][:, order], window.pattern(name))
            weights[linear] = window.weight(linear) * mask[:, invert(order)]
    return weights


def test_contract() -> None:
    check_pruner(LearnedMask(steps=2, batch=2))


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(3, 4), Pattern(1, 2)], ids=str)
def test_the_loss_on_held_out_sequences_falls(pattern: Pattern) -> None:
    window = toy_window(pattern=pattern, sequences=32, held_out=4)
    permutations = permutations_of(window)
    learned = LearnedMask(steps=30, batch=4, learning_rate=0.03).refine(window, permutations)
    start = {linear: window.scores(linear) for linear in window.linears}
    loss = WindowLoss.of(window, "kl", "model")
    before = loss.held_out(under(window, permutations, start), 4)
    weights = under(window, permutations, learned)
    assert loss.held_out(weights, 4) < 0.95 * before
    for name, group in window.groups.items():
        for linear in group.linears:
            assert is_nm(weights[linear][:, permutations[name]], pattern)
            assert set(learned[linear].unique().tolist()) == {0.0, 1.0}


def test_it_begins_with_the_mask_of_the_scores_and_keeps_it_where_learning_does_not_help() -> None:
    window = toy_window()
    permutations = permutations_of(window)
    start = {linear: window.scores(linear) for linear in window.linears}
    expected = under(window, permutations, start)
    masks, weights = Masks(LearnedMask(), window, permutations).result(Step(0, 4))
    for linear in window.linears:
        assert torch.equal(weights[linear], expected[linear])
        assert torch.equal(masks[linear], expected[linear] != 0)
    wild = LearnedMask(steps=4, batch=2, learning_rate=100.0).refine(window, permutations)
    for linear, weight in under(window, permutations, wild).items():
        assert torch.equal(weight, expected[linear])


def test_a_step_goes_through_the_soft_masks_of_its_temperature() -> None:
    window = toy_window()
    permutations = permutations_of(window)
    options = LearnedMask(temperature_start=0.5, temperature_end=0.1)
    trainee = Masks(options, window, permutations)
    for number, temperature in ((1, 0.5), (3, 0.3), (5, 0.1)):
        at = Step(number, 5)
        assert trainee.figures(at) == {"temperature": pytest.approx(temperature)}
        weights = trainee.weights(at)
        for name, group in window.groups.items():
            order = permutations[name]
            for linear in group.linears:
                logits = first_logits(window.scores(linear)[:, order], window.pattern(name))
                mask = soft_mask(logits, window.pattern(name), temperature)
                expected = window.weight(linear) * mask[:, invert(order)]
                torch.testing.assert_close(weights[linear], expected)


def test_only_its_own_linears_learn() -> None:
    window = toy_window()
    permutations = permutations_of(window)
    others = [linear for linear in window.linears if linear.endswith("down_proj")]
    pruner = LearnedMask(steps=2, batch=2, learning_rate=0.3, select="last")
    window.pruners = {linear: Mask() if linear in others else pruner for linear in window.linears}
    learned = pruner.refine(window, permutations)
    assert set(learned) == set(window.linears) - set(others)
    start = {linear: window.scores(linear) for linear in window.linears}
    before, after = (under(window, permutations, s) for s in (start, start | learned))
    changed = {
        linear for linear in window.linears if not torch.equal(before[linear], after[linear])
    }
    assert changed == set(learned)


def test_first_logits_are_scores_over_the_mean_of_their_group() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.5, 1.0, 1.5, 1.0, 0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(first_logits(scores, Pattern(2, 4)), expected)
