"""One layer is run with its own outputs, with others, and without memory for weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from permllm.folding.layout import Layout
from permllm.folding.trial import LayerProbe
from permllm.folding.verify import prove


def test_a_layer_runs_as_in_the_model(llama: Layout) -> None:
    decoder = llama.decoder
    probe = LayerProbe(decoder, 0, torch.float32, 6)
    tokens = torch.arange(6)[None]
    calls = decoder.embed(tokens)
    run = probe.run(calls.hidden)
    with torch.no_grad():
        torch.testing.assert_close(run.output, decoder.run_layer(0, calls.hidden, calls))
    assert {name: inputs.shape[1] for name, inputs in run.inputs.items()} == {
        group.name: group.channels for group in decoder.groups.values() if group.layer == 0
    }


def test_other_parameters_count_for_one_run(llama: Layout) -> None:
    probe = LayerProbe(llama.decoder, 0, torch.float64, 6)
    hidden = probe.hidden(2, 6, seed=0)
    assert torch.equal(hidden, probe.hidden(2, 6, seed=0))
    before = probe.run(hidden).output
    name = "mlp.down_proj.weight"
    changed = probe.run(hidden, parameters={name: probe.parameters[name] * 2}).output
    assert not torch.allclose(changed, before)
    assert torch.equal(probe.run(hidden).output, before)


def test_made_up_outputs_need_no_weights(llama: Layout) -> None:
    probe = LayerProbe(llama.decoder, 0, torch.float64, 6, hollow=True)
    hidden = probe.hidden(1, 6, seed=0)
    sizes = {linear.name: linear.c_out for linear in probe.linears}

    def ones(name: str, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.new_ones(*inputs.shape[:-1], sizes[name])

    run = probe.run(hidden, outputs=ones)
    # Attention over equal values gives that value, and the MLP reads what silu makes of it.
    o_proj = run.inputs["model.layers.0:self_attn.o_proj"]
    torch.testing.assert_close(o_proj, torch.ones_like(o_proj))
    down = run.inputs["model.layers.0:mlp.down_proj"]
    torch.testing.assert_close(down, torch.nn.functional.silu(torch.ones_like(down)))
    torch.testing.assert_close(run.output, hidden + 2)
    assert all(
        probe.parameters[linear.parameter].untyped_storage().nbytes() <= 8
        for linear in probe.linears
    )


def test_memory_that_is_missing_is_no_layer_that_cannot_be_run(
    llama: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = llama.folds([0])
    groups = llama.decoder.groups
    orders = {name: torch.arange(group.channels).flip(0) for name, group in groups.items()}

    def full(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("permllm.folding.trial.LayerProbe.run", full)
    fresh = Layout(llama.decoder)
    for asks in (
        lambda: prove(llama.decoder, 0, folds),
        lambda: fresh.folds([0]),
        lambda: fresh.constraints(foldable=False, residual="shared"),
        lambda: fresh.plan(orders),
    ):
        with pytest.raises(torch.OutOfMemoryError):
            asks()
