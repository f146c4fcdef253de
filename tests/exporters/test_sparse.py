"""Sparse exports unpack to the very bits of the permuted model, in every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import permllm
from permllm import UserError
from permllm.core.patterns import Pattern
from permllm.exporters.sparse import Sparse
from permllm.formats.manifest import read_manifest
from permllm.formats.stored import stored_tensors
from permllm.testing import check_exporter
from permllm.testing.exporters import pruned_export
from permllm.testing.models import ARCHITECTURES, VOCABULARY, tiny_model

TOKENS = torch.randint(VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))


def kept_order(name, group):
    return torch.arange(group.channels)


def random_order(name, group):
    return torch.randperm(group.channels, generator=torch.Generator().manual_seed(0))


def test_contract() -> None:
    check_exporter(Sparse())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_comes_back_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    context = pruned_export(model, kept_order)
    Sparse().export(context, tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest.format == "sparse"
    assert manifest.packed
    opened = permllm.load(tmp_path).model.state_dict()
    for stored in stored_tensors(context.decoder, context.storage, context.patterns):
        assert torch.equal(opened[stored.name], stored.tensor), stored.name


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern(4, 8)], ids=str)
def test_orders_that_are_gathered_come_along(pattern: Pattern, tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    Sparse().export(pruned_export(model, random_order, pattern), tmp_path)
    assert read_manifest(tmp_path).gathers
    with torch.no_grad():
        expected = model(input_ids=TOKENS).logits
        for sparse in (False, True):
            loaded = permllm.load(tmp_path, sparse=sparse)
            got = loaded.model(input_ids=TOKENS).logits
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
            assert bool(loaded.linears) == sparse


def test_pruned_weights_take_the_bytes_of_values_and_bits(tmp_path: Path) -> None:
    context = pruned_export(tiny_model("llama"), kept_order)
    Sparse(dtype="bfloat16").export(context, tmp_path)
    manifest = read_manifest(tmp_path)
    stored = load_file(tmp_path / "permllm.safetensors")
    held = sum(
        stored[f"{name}{end}"].nbytes for name in manifest.packed for end in (".values", ".indices")
    )
    dense = sum(2 * context.decoder.weight(linear).numel() for linear in context.patterns)
    assert held == 0.5625 * dense


def test_damaged_places_are_named(tmp_path: Path) -> None:
    Sparse().export(pruned_export(tiny_model("llama"), kept_order), tmp_path)
    path = tmp_path / "permllm.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(".indices"))
    tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="cannot be unpacked: places"):
        permllm.load(tmp_path, check=False)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"there is no '{name}'"):
        permllm.load(tmp_path, check=False)
