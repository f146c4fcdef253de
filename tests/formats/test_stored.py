"""A model in stored order: every tensor once, and the model itself left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from permllm.core.patterns import Pattern, is_nm
from permllm.formats import stored
from permllm.formats.export_files import write_file
from permllm.formats.gathers import BUFFER
from permllm.formats.stored import in_stored_order, parameter_patterns, stored_tensors
from permllm.models.linears import Group
from permllm.testing.exporters import pruned_export
from permllm.testing.models import tiny_model


def backwards(name: str, group: Group) -> torch.Tensor:
    return torch.arange(group.channels).flip(0)


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
def test_every_tensor_comes_once_and_what_is_pruned_is_nm(name: str) -> None:
    context = pruned_export(tiny_model(name), backwards)
    tensors = list(
        stored_tensors(context.decoder, context.storage, context.patterns, torch.bfloat16)
    )
    names = [one.name for one in tensors]
    assert len(set(names)) == len(names)
    assert {one for one in names if one.endswith(BUFFER)} == {
        f"{module}.{BUFFER}" for module in context.storage.gathers
    }
    assert {linear for one in tensors for linear in one.linears} == set(context.patterns)
    for one in tensors:
        assert one.tensor.is_contiguous()
        assert one.tensor.dtype in (torch.bfloat16, torch.long)
        if one.pattern is not None:
            assert is_nm(one.tensor.transpose(one.axis, -1), one.pattern)


def test_the_model_has_its_stored_order_for_the_block_alone() -> None:
    context = pruned_export(tiny_model("llama"), backwards)
    model = context.decoder.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {
        one.name: one.tensor
        for one in stored_tensors(context.decoder, context.storage, context.patterns)
    }
    with in_stored_order(context.decoder, context.storage):
        inside = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in inside.items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in inside.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_experts_have_a_pattern_only_if_all_have_it() -> None:
    context = pruned_export(tiny_model("mixtral"), lambda name, group: torch.arange(group.channels))
    patterns, name = dict(context.patterns), "model.layers.0.mlp.experts.down_proj"
    pattern, axis, linears = parameter_patterns(context.decoder, patterns)[name]
    assert (pattern, axis) == (Pattern(2, 4), -1)
    assert linears == tuple(f"{name}[{index}]" for index in range(4))
    patterns[f"{name}[2]"] = Pattern(1, 4)
    assert name not in parameter_patterns(context.decoder, patterns)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("much", [False, True])
def test_copies_that_would_take_much_memory_are_mapped_from_files(
    much: bool, dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = pruned_export(tiny_model("llama"), backwards)
    decoder = context.decoder
    monkeypatch.setattr(stored, "available_memory", lambda: 0 if much else 2**40)
    expected = {
        one.name: one.tensor
        for one in stored_tensors(decoder, context.storage, context.patterns, dtype)
    }
    with in_stored_order(decoder, context.storage, dtype, tmp_path):
        files = list(tmp_path.rglob("*.safetensors"))
        assert len(files) == (len(decoder.layers) if much else 0)
        inside = decoder.model.state_dict()
        assert all(torch.equal(one, expected[name]) for name, one in inside.items())
        del inside
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_given_back_where_copies_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = pruned_export(tiny_model("llama"), backwards)
    monkeypatch.setattr(stored, "available_memory", lambda: 0)
    before = {name: tensor.clone() for name, tensor in context.decoder.model.state_dict().items()}
    written = []

    def fail_second(path: Path, tensors: object) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        write_file(path, tensors)  # type: ignore[arg-type]

    monkeypatch.setattr(stored, "write_file", fail_second)
    with (
        pytest.raises(OSError, match="No space left"),
        in_stored_order(context.decoder, context.storage, None, tmp_path),
    ):
        pass
    after = context.decoder.model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert list(tmp_path.iterdir()) == []
