"""Sparse exports unpack to the very bits of the permuted model, in every architecture."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import permllm
from permllm import UserError
from permllm.core.patterns import Pattern
from permllm.exporters.sparse import Sparse, _bytes
from permllm.folding.residual import find_residual
from permllm.formats.manifest import read_manifest
from permllm.formats.stored import stored_tensors
from permllm.models.decoder import Decoder
from permllm.models.linears import Group
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


ROUNDED = [
    Sparse(values="int8"),
    Sparse(values="int4", group_size=8),
    Sparse(values="int4", dtype="bfloat16", rounding="nearest"),
]


@pytest.mark.parametrize("exporter", ROUNDED, ids=lambda one: f"{one.values}-{one.rounding}")
def test_contract_of_rounded_values(exporter: Sparse) -> None:
    check_exporter(exporter)


@pytest.mark.parametrize("exporter", ROUNDED, ids=lambda one: f"{one.values}-{one.rounding}")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rounded_values_come_back_in_every_architecture(
    architecture: str, exporter: Sparse, tmp_path: Path
) -> None:
    """All is opened and compared with the rounded model by the export itself."""
    context = pruned_export(tiny_model(architecture), kept_order)
    exporter.export(context, tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest.permllm == 2
    assert {one.values for one in manifest.packed.values()} == {exporter.values}
    opened = permllm.load(tmp_path).model.state_dict()
    changed = 0
    for stored in stored_tensors(context.decoder, context.storage, context.patterns):
        weight = opened[stored.name].float()
        if stored.name not in manifest.packed:
            assert torch.equal(weight, stored.tensor.to(opened[stored.name].dtype).float())
            continue
        assert not weight[stored.tensor == 0].any()
        off, size = (weight - stored.tensor).norm(), stored.tensor.norm()
        assert float(off / size) < (0.02 if exporter.values == "int8" else 0.3), stored.name
        changed += int(off > 0)
    assert changed == len(manifest.packed)


@pytest.mark.parametrize("name", ["llama-gqa", "mixtral", "gpt2"])
def test_scales_follow_rows_that_are_folded_or_in_the_streams_order(
    name: str, tmp_path: Path
) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    residual = find_residual(decoder)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(5))

    def streamed(name: str, group: Group) -> torch.Tensor:
        return order if name in residual.groups else torch.arange(group.channels)

    context = pruned_export(model, streamed)
    Sparse(values="int4", group_size=8).export(context, tmp_path)
    assert len(read_manifest(tmp_path).residual) >= 12


def test_what_is_not_rounded_has_the_manifest_that_it_had(tmp_path: Path) -> None:
    Sparse().export(pruned_export(tiny_model("llama"), kept_order), tmp_path)
    assert read_manifest(tmp_path).permllm == 1


@pytest.mark.parametrize(
    ("exporter", "share"),
    [
        (Sparse(values="int8", dtype="bfloat16"), 0.625),
        (Sparse(values="int4", dtype="bfloat16"), 0.375),
    ],
    ids=["int8", "int4"],
)
def test_rounded_weights_take_the_bytes_that_are_forecast(
    exporter: Sparse, share: float, tmp_path: Path
) -> None:
    context = pruned_export(tiny_model("llama"), kept_order)
    exporter.export(context, tmp_path)
    tensors = load_file(tmp_path / "permllm.safetensors")
    packed = read_manifest(tmp_path).packed
    rows = sum(context.decoder.linears[name].c_out for name in context.patterns)
    entries = sum(context.decoder.weight(name).numel() for name in context.patterns)
    held = sum(tensors[f"{name}{end}"].nbytes for name, one in packed.items() for end in one.ends)
    assert held == share * entries + 2 * rows
    assert _bytes(context, torch.bfloat16, exporter.grid) == sum(
        tensor.nbytes for tensor in tensors.values()
    )
    spans = 2 * entries / 128 if exporter.values == "int4" else 0
    forecast = exporter.stored_bytes(entries, entries, 2, Pattern(2, 4))
    assert forecast == round(share * entries + spans)


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    context = pruned_export(tiny_model("llama"), kept_order)
    with pytest.raises(UserError, match=r"group_size: 6 is no multiple of 4, of the pattern 2:4"):
        Sparse(values="int8", group_size=6).export(context, tmp_path)
    with pytest.raises(UserError, match="group_size: 8 is for rounded values"):
        Sparse(group_size=8).export(context, tmp_path)
    assert list(tmp_path.iterdir()) == []
    Sparse(values="int4").check_pattern(Pattern(4, 8))
    with pytest.raises(UserError, match="128 is no multiple of 3") as caught:
        Sparse(values="int4").check_pattern(Pattern(1, 3))
    assert caught.value.hint == "group_size: 126 is one"


def test_the_card_says_how_values_are_rounded(tmp_path: Path) -> None:
    context = pruned_export(tiny_model("llama"), kept_order)
    Sparse(values="int4").export(context, tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "whole numbers of 4 bits, two a byte" in card
    assert "one for every 128 input channels of a row" in card


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (lambda scales: scales * float("nan"), "the scale nan in row 0, place 0 is no size"),
        (
            lambda scales: scales[:, :1].contiguous(),
            r"scales \(\d+, 1\) of torch.bfloat16 should be",
        ),
        (None, "there is no"),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_damaged_scales_are_named(
    damage: Callable[[torch.Tensor], torch.Tensor] | None, wrong: str, sparse: bool, tmp_path: Path
) -> None:
    Sparse(values="int4", group_size=8).export(
        pruned_export(tiny_model("llama"), kept_order), tmp_path
    )
    path = tmp_path / "permllm.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.down_proj.weight.scales"
    if damage is None:
        del tensors[name]
    else:
        tensors[name] = damage(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        permllm.load(tmp_path, check=False, sparse=sparse)
    assert "model.layers.1.mlp.down_proj" in caught.value.message
    assert sparse or re.search(wrong, caught.value.message)


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
