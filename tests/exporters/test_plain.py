"""Checkpoints as transformers writes them, and where the pruned weights stand in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from permllm.core.patterns import is_nm
from permllm.exporters.plain import write_plain
from permllm.testing.exporters import pruned_export
from permllm.testing.models import tiny_model


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_every_pruned_tensor_is_told_and_is_nm(name: str, tmp_path: Path) -> None:
    context = pruned_export(tiny_model(name), lambda name, group: torch.arange(group.channels))
    held = write_plain(context.decoder, context.storage, context.patterns, torch.bfloat16, tmp_path)
    tensors: dict[str, torch.Tensor] = {}
    for path in tmp_path.glob("*.safetensors"):
        tensors |= load_file(path)
    for key, (pattern, axis) in held.items():
        assert is_nm(tensors[key].transpose(axis, -1), pattern), key
    entries = sum(tensors[key].numel() for key in held)
    linears = context.decoder.linears.values()
    assert entries == sum(linear.c_in * linear.c_out for linear in linears)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert context.decoder.model.dtype == torch.float32
