"""What a window computes: hidden states layer by layer, dense and under other weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import attrs
import pytest
import torch

from permllm.contexts.window import WholeTensors, Window
from permllm.errors import RunFailed
from permllm.models.residency import Residency
from permllm.testing.device import simulated_device
from permllm.testing.windows import toy_window
from permllm.training.loop import batches


@pytest.mark.parametrize("layers", [range(2), range(1, 2)])
def test_states_of_all_layers_end_in_the_windows_outputs(layers: range) -> None:
    window = toy_window(layers=layers)
    rows, linear = window.learning[:2], window.linears[0]
    weights = {linear: window.weight(linear) * 0.5}
    outputs, targets = window.layer_outputs(weights, rows), window.layer_targets(rows)
    assert len(outputs) == len(targets) == len(layers)
    assert torch.equal(outputs[-1], window.outputs(weights, rows))
    assert torch.equal(targets[-1], window.targets(rows))
    # The first linear is in the first layer, so that all layers feel its change.
    for pruned, dense in zip(outputs, targets, strict=True):
        assert not torch.allclose(pruned, dense)
    for same, dense in zip(window.layer_outputs({}, rows), targets, strict=True):
        assert torch.equal(same, dense)


def test_a_sample_of_a_groups_scores_has_rows_of_every_linear() -> None:
    window = toy_window()
    group = next(group for group in window.groups.values() if len(group.linears) > 1)
    scores = [window.scores(linear) for linear in group.linears]
    assert torch.equal(window.group_scores(group.name), torch.cat(scores))
    total = sum(map(len, scores))
    assert torch.equal(window.group_scores(group.name, total), torch.cat(scores))
    sample = window.group_scores(group.name, (total + 2) // 3)
    assert torch.equal(sample, torch.cat([score[::3] for score in scores]))


def test_gradients_flow_through_the_states_of_every_layer() -> None:
    window = toy_window()
    rows, linear = window.learning[:2], window.linears[0]
    for layer in range(2):
        weight = window.weight(linear).clone().requires_grad_()
        window.layer_outputs({linear: weight}, rows)[layer].sum().backward()
        assert weight.grad is not None
        assert bool(weight.grad.count_nonzero())
    assert not any(states.requires_grad for states in window.layer_targets(rows))


def test_the_last_dense_states_are_the_targets() -> None:
    window = toy_window()
    rows = window.learning[:3]
    torch.testing.assert_close(window.layer_targets(rows)[-1], window.targets(rows))


def test_dense_states_have_the_callers_precision() -> None:
    """Whoever trains in bfloat16 compares with what the dense model gives in bfloat16."""
    window = toy_window()
    rows = window.learning[:2]
    plain = window.targets(rows)
    with torch.autocast("cpu", torch.bfloat16):
        halved = window.targets(rows)
        assert torch.equal(halved, window.outputs({}, rows))
    assert not torch.equal(plain, halved)
    assert torch.equal(plain, window.targets(rows))


def test_a_training_that_ends_early_wants_no_other_dense_states() -> None:
    window = toy_window(sequences=8)
    made: list[list[int]] = []

    def keep(layer: int, rows: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        made.append(rows.tolist())
        return make()

    window.keep_states = keep
    window.sequences = attrs.evolve(window.sequences, batch_size=2)
    for rows in islice(batches(window, 2, fresh=True), 2):
        window.targets(rows)
    assert made == [window.learning[:2].tolist(), window.learning[2:4].tolist()]


def test_gradients_are_those_of_the_models_own_weights() -> None:
    window = toy_window(layers=range(1))
    model, linears = window.decoder.model, window.linears[::2]
    rows = window.learning[: window.calibration].split(1)
    seen: list[torch.Tensor] = []

    def loss(hidden: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        seen.append(row)
        return hidden.square().sum()

    found = list(window.gradients(linears, loss))
    assert seen == list(rows)
    assert all(parameter.grad is None for parameter in model.parameters())
    weights = {linear: model.get_parameter(f"{linear}.weight") for linear in linears}
    for row, gradients in zip(rows, found, strict=True):
        assert list(gradients) == linears
        states = model.requires_grad_()(window.tokens[row], output_hidden_states=True)
        loss(states.hidden_states[1], row).backward()
        for linear, weight in weights.items():
            torch.testing.assert_close(gradients[linear], weight.grad)
        model.zero_grad()


def test_a_linear_knows_its_group_and_its_place() -> None:
    window = toy_window(layers=range(1, 2))
    assert window.model_layers == 2
    for name, group in window.groups.items():
        for linear in group.linears:
            assert window.group_of(linear) == name
            assert window.layer_of(linear) == 1


def test_a_window_without_scores_says_so() -> None:
    window = toy_window()
    bare = WholeTensors(window.decoder, window.device, {}, {})
    linear = window.linears[0]
    with pytest.raises(RunFailed, match=f"the scores of {linear} were asked for before"):
        attrs.evolve(window, tensors=bare).scores(linear)


def test_layers_of_a_streamed_window_are_fetched_in_the_order_of_either_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ahead: list[int] = []
    begin = Residency._fetch

    def noted(residency: Residency, layer: torch.nn.Module) -> None:
        begin(residency, layer)
        if residency._ahead is not None:
            ahead.append(residency.layers.index(layer))

    monkeypatch.setattr(Residency, "_fetch", noted)

    def gradient(window: Window) -> torch.Tensor:
        linear = window.linears[0]
        weight = window.weight(linear).clone().requires_grad_()
        window.outputs({linear: weight}, window.learning[:2]).square().sum().backward()
        assert weight.grad is not None
        return weight.grad.cpu()

    expected = gradient(toy_window())
    with simulated_device() as simulated:
        window = attrs.evolve(toy_window(device=simulated.device), streamed=True)
        window.decoder.place(simulated.device, ())
        around = simulated.live_bytes
        assert torch.equal(gradient(window), expected)
        assert ahead == [1, 0]
        assert simulated.faults == []
        assert simulated.live_bytes == around
        window.targets(window.learning[:2])
        assert ahead == [1, 0, 1]
