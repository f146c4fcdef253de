"""A model holds rounded weights for the block, each layer rounded by what reaches it then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from permllm.contexts.export import ExportContext
from permllm.core.codes import Grid, values_of
from permllm.core.packing import pack
from permllm.core.patterns import Pattern
from permllm.core.rounding import round_compensating, round_to_nearest
from permllm.core.statistics import GRAM
from permllm.errors import RunFailed, UserError
from permllm.formats import stored
from permllm.formats.rounded import holding_rounded
from permllm.formats.stored import stored_tensors
from permllm.models.linears import Group
from permllm.testing.exporters import pruned_export, toy_export
from permllm.testing.models import tiny_model

GRID = Grid(4, 8)


def shuffled(name: str, group: Group) -> Tensor:
    return torch.randperm(group.channels, generator=torch.Generator().manual_seed(len(name)))


def weights_of(context: ExportContext) -> dict[str, Tensor]:
    return {name: context.decoder.weight(name).clone() for name in context.patterns}


def test_a_layer_is_rounded_by_what_rounded_layers_hand_on(tmp_path: Path) -> None:
    context = pruned_export(tiny_model("llama-gqa"), shuffled)
    decoder, sequences = context.decoder, context.calibration()
    with holding_rounded(context, GRID, tmp_path, calibrated=True):
        rounded = weights_of(context)
    calls = decoder.embed(sequences.tokens)
    hidden = calls.hidden
    for layer in range(len(decoder.layers)):
        _, sums = decoder.statistics(layer, hidden, calls, (GRAM,))
        for name, group in decoder.groups.items():
            order = context.permutations[name]
            for linear in group.linears if group.layer == layer else ():
                gram = GRAM.permuted(sums[name]["gram"], order)
                expected, _ = round_compensating(decoder.weight(linear)[:, order], gram, GRID)
                # Statistics of batches are summed in another order.
                same = torch.isclose(rounded[linear][:, order], expected, rtol=1e-4, atol=1e-6)
                assert float(same.double().mean()) > 0.99, linear
        hidden = decoder.run_layer(layer, hidden, calls, rounded)


def test_to_the_nearest_no_text_is_read(tmp_path: Path) -> None:
    def unread() -> None:
        raise AssertionError

    context = pruned_export(tiny_model("llama"), shuffled, calibration=unread)
    before = weights_of(context)
    with holding_rounded(context, GRID, tmp_path, calibrated=False):
        for name, weight in before.items():
            order = context.permutations[context.group_of(name)]
            expected, _ = round_to_nearest(weight[:, order], torch.ones(len(order)), GRID)
            assert torch.equal(context.decoder.weight(name)[:, order], expected)


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "mixtral", "gpt-oss"])
@pytest.mark.parametrize("much", [False, True])
def test_scales_are_in_the_order_of_the_stored_rows(
    name: str, much: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "available_memory", lambda: 0 if much else 2**40)
    order = shuffled if name != "gpt-oss" else lambda name, group: torch.arange(group.channels)
    context = pruned_export(tiny_model(name), order)
    before = weights_of(context)
    with holding_rounded(context, GRID, tmp_path, calibrated=True) as rounded:
        assert bool(list(tmp_path.rglob("*.safetensors"))) == much
        tensors = stored_tensors(context.decoder, context.storage, context.patterns)
        packed = [one for one in tensors if one.pattern is not None]
        assert {one.name for one in packed} == set(rounded)
        for one in packed:
            how = rounded[one.name]
            along = one.tensor if one.axis == -1 else one.tensor.transpose(-1, -2)
            rows = along.reshape(-1, along.shape[-1])
            values, _ = pack(rows, Pattern(2, 4))
            kept = GRID.kept(rows.shape[1], Pattern(2, 4))
            codes = (values / how.scales.float().repeat_interleave(kept, 1)).round()
            assert float(codes.abs().max()) <= GRID.top
            assert torch.equal(values_of(codes.to(torch.int8), how.scales, kept), values)
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(before[name], now) for name, now in weights_of(context).items())


def test_experts_that_are_not_packed_stay(tmp_path: Path) -> None:
    context = pruned_export(tiny_model("mixtral"), shuffled)
    del context.patterns["model.layers.0.mlp.experts.down_proj[1]"]
    name = "model.layers.0.mlp.experts.down_proj"
    before = [context.decoder.weight(f"{name}[{index}]").clone() for index in range(4)]
    with holding_rounded(context, GRID, tmp_path, calibrated=False) as rounded:
        assert name not in rounded
        for index, weight in enumerate(before):
            assert torch.equal(context.decoder.weight(f"{name}[{index}]"), weight)


def test_activations_that_are_not_finite_are_named(tmp_path: Path) -> None:
    context = pruned_export(tiny_model("llama"), shuffled)
    for name in ("gate_proj", "up_proj"):
        context.decoder.weight(f"model.layers.0.mlp.{name}").mul_(1e20)
    with (
        pytest.raises(RunFailed, match=r"what model\.layers\.0\.mlp\.down_proj reads"),
        holding_rounded(context, GRID, tmp_path, calibrated=True),
    ):
        pass


def test_a_context_without_text_says_so() -> None:
    context = toy_export(tiny_model("llama"))
    from permllm.contexts.export import _no_text

    assert context.calibration().tokens.shape == (8, 24)
    with pytest.raises(UserError, match="no calibration text"):
        _no_text()
