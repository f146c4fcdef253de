"""Distances between the pruned and the dense window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from permllm.testing.windows import toy_window
from permllm.training.losses import LOSSES, WindowLoss, cosine, kl, next_token
from permllm.world import ALONE


class StandIn:
    """What the losses read of a window: states, a head that shifts each row, and tokens."""

    device = torch.device("cpu")
    reaches_head = True
    world = ALONE

    def __init__(self, sequences: int = 5, length: int = 4) -> None:
        rng = torch.Generator().manual_seed(0)
        self.dense = torch.randn(sequences, length, 3, generator=rng, dtype=torch.float64)
        self.hidden = torch.randn(sequences, length, 3, generator=rng, dtype=torch.float64)
        self.tokens = torch.randint(7, (sequences, length), generator=rng)
        self.head = torch.randn(3, 7, generator=rng, dtype=torch.float64)
        self.shift = torch.randn(sequences, 1, 7, generator=rng, dtype=torch.float64)
        self.held_out = torch.arange(2, sequences)
        self.asked: list[tuple[bool, bool, Mapping[str, Tensor]]] = []

    def targets(self, rows: Tensor) -> Tensor:
        return self.dense[rows]

    def logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        return hidden @ self.head + self.shift[rows]

    def target_logits(self, rows: Tensor) -> Tensor:
        return self.logits(self.dense[rows], rows)

    def outputs(
        self, weights: Mapping[str, Tensor], rows: Tensor, *, recompute: bool = False
    ) -> Tensor:
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        self.asked.append((torch.is_autocast_enabled("cpu"), recompute, weights))
        return self.hidden[rows]


def by_token(window: StandIn, name: str, rows: list[int]) -> float:
    """A loss by its definition, one token after another."""
    values = []
    for row in rows:
        for place in range(window.tokens.shape[1]):
            ours, theirs = window.hidden[row, place], window.dense[row, place]
            p, q = (
                torch.softmax(state @ window.head + window.shift[row, 0], 0)
                for state in (theirs, ours)
            )
            if name == "cosine":
                values.append(1 - float(ours @ theirs / ours.norm() / theirs.norm()))
            elif name == "kl":
                values.append(float((p * (p / q).log()).sum()))
            elif place + 1 < window.tokens.shape[1]:
                values.append(-math.log(float(q[window.tokens[row, place + 1]])))
    return sum(values) / len(values)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rows", [[3], [4, 0, 2]])
def test_losses_are_means_over_tokens(name: str, rows: list[int]) -> None:
    window = StandIn()
    loss = LOSSES[name](window, window.hidden[rows], torch.tensor(rows))  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(by_token(window, name, rows), rel=1e-5)


def test_every_loss_has_its_name() -> None:
    assert {"cosine": cosine, "kl": kl, "next-token": next_token} == LOSSES


@pytest.mark.parametrize("distance", [cosine, next_token])
def test_losses_of_halves_are_summed_in_float32(distance: object) -> None:
    window = StandIn()
    for name in ("dense", "hidden", "head", "shift"):
        setattr(window, name, getattr(window, name).bfloat16())
    rows = torch.arange(3)
    assert distance(window, window.hidden[rows], rows).dtype == torch.float32  # type: ignore[operator]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_held_out_is_the_mean_over_all_its_sequences(
    name: str, recompute: bool, batch: int
) -> None:
    window = StandIn()
    loss = WindowLoss(window, LOSSES[name], bfloat16=False, recompute=recompute)  # type: ignore[arg-type]
    expected = by_token(window, name, [2, 3, 4])
    assert loss.held_out({}, batch) == pytest.approx(expected, rel=1e-5)
    window.held_out = window.held_out[:0]
    assert math.isnan(loss.held_out({}, batch))


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
def test_a_loss_runs_the_window_as_it_is_told(bfloat16: bool, recompute: bool) -> None:
    window, weights = StandIn(), {"linear": torch.zeros(())}
    loss = WindowLoss(window, cosine, bfloat16=bfloat16, recompute=recompute)  # type: ignore[arg-type]
    loss(weights, torch.arange(2))
    assert window.asked == [(bfloat16, recompute, weights)]
    assert loss.dtype == (torch.bfloat16 if bfloat16 else None)


@pytest.mark.parametrize("native", [True, False])
def test_precision_auto_goes_by_the_device(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(
        "permllm.training.losses.has_bfloat16", lambda device: native and device.type == "cpu"
    )
    kinds = {
        precision: WindowLoss.of(StandIn(), "kl", precision).bfloat16  # type: ignore[arg-type]
        for precision in ("auto", "model", "bfloat16")
    }
    assert kinds == {"auto": native, "model": False, "bfloat16": True}


def test_by_default_nothing_is_computed_twice() -> None:
    assert not WindowLoss.of(StandIn(), "kl", "model").recompute  # type: ignore[arg-type]


@pytest.mark.parametrize("reaches_head", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_only_windows_that_reach_the_head_have_losses_of_logits(
    name: str, reaches_head: bool
) -> None:
    window = SimpleNamespace(device=torch.device("cpu"), reaches_head=reaches_head)
    loss = WindowLoss.of(window, name, "model")  # type: ignore[arg-type]
    assert loss.distance is (LOSSES[name] if reaches_head else cosine)


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
