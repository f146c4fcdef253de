"""Distillation: what is cut stays cut, and what is kept comes nearer to the dense model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from permllm.components import Pruner
from permllm.contexts.window import Window
from permllm.core.patterns import nm_mask
from permllm.core.statistics import GRAM
from permllm.pruners.distil import Distil
from permllm.pruners.mask import Mask
from permllm.pruners.sparsegpt import SparseGpt
from permllm.testing import check_pruner
from permllm.testing.windows import toy_window
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
