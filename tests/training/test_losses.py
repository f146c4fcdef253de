"""Distances between the pruned and the dense window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from permllm.testing.windows import toy_window
from permllm.training.losses import LOSSES, WindowLoss


@pytest.mark.parametrize("name", LOSSES)
def test_losses_flow_back_to_the_weights(name: str) -> None:
    window = toy_window()
    loss = WindowLoss.of(window, name, "model")
    linear = window.linears[0]
    weight = (window.weight(linear) * 0.5).requires_grad_()
    loss({linear: weight}, window.learning[:2]).backward()
    assert weight.grad is not None
    assert bool(weight.grad.count_nonzero())
    if name != "next-token":
        assert float(loss({}, window.learning[:2])) == pytest.approx(0, abs=1e-6)
        assert loss.held_out({linear: weight.detach()}, 2) > 1e-6


def test_next_token_is_the_models_own_loss() -> None:
    window = toy_window()
    rows = window.learning[:2]
    tokens = window.tokens[rows]
    own = window.decoder.model(input_ids=tokens, labels=tokens).loss.item()
    assert WindowLoss.of(window, "next-token", "model")({}, rows).item() == pytest.approx(own)


def test_a_window_without_logits_takes_the_cosine() -> None:
    loss = WindowLoss.of(toy_window(layers=range(1)), "kl", "model")
    assert loss.distance is LOSSES["cosine"]


@pytest.mark.parametrize("loss", LOSSES)
def test_recomputed_losses_have_the_same_gradients(loss: str) -> None:
    window = toy_window()
    rows = window.learning[:3]
    found = []
    for recompute in (False, True):
        weights = {name: window.weight(name).mul(0.9).requires_grad_() for name in window.linears}
        value = WindowLoss.of(window, loss, "model", recompute=recompute)(weights, rows)
        value.backward()
        found.append((value.detach(), [weight.grad for weight in weights.values()]))
    (one, slopes), (other, others) = found
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(slopes, others)


def test_recomputing_keeps_less_for_the_backward_pass() -> None:
    window = toy_window()
    weights = {name: window.weight(name).requires_grad_() for name in window.linears}
    kept: dict[bool, int] = {}
    for recompute in (False, True):
        seen: dict[int, int] = {}

        def pack(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            WindowLoss.of(window, "kl", "model", recompute=recompute)(weights, window.learning)
        kept[recompute] = sum(seen.values())
    assert kept[True] < kept[False] / 3
