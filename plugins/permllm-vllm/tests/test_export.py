"""What is read of a folder, and what is refused before vLLM builds anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from permllm_vllm.export import Export, Layout
from safetensors.torch import load_file, save_file

import permllm
from permllm import UserError
from permllm.core.codes import Grid
from permllm.core.patterns import Pattern

LAYER = "model.layers.0"


@pytest.mark.parametrize("form", ["permuted", "sparse"])
def test_all_linears_have_their_layouts(form: str, exported: Any) -> None:
    folder = exported("llama-gqa", form)
    export = Export.read(str(folder))
    model = permllm.load(folder).model
    assert len(export.layouts) == 14
    for name, layout in export.layouts.items():
        assert layout.pattern == Pattern(2, 4)
        assert layout.packed == (form == "sparse")
        assert layout.permutation is not None or "down" in name or "o_proj" in name
        weight = model.get_parameter(f"{name}.weight")
        if layout.permutation is not None:
            assert layout.permutation.shape == weight.shape[1:]


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_values_that_are_codes(values: str, exported: Any) -> None:
    export = Export.read(str(exported("llama-gqa", "sparse", values=values, group_size=8)))
    assert {layout.grid for layout in export.layouts.values()} == {Grid(int(values[3:]), 8)}


def test_a_linear_that_is_dense_in_a_group_that_is_pruned(exported: Any) -> None:
    folder = exported("llama", "sparse", dense="q_proj")
    layouts = Export.read(str(folder)).layouts
    parts = [f"{LAYER}.self_attn.{name}_proj" for name in "qkv"]
    assert [layouts[part].pattern for part in parts] == [None, Pattern(2, 4), Pattern(2, 4)]
    assert layouts[parts[0]].permutation is not None
    with pytest.raises(ValueError, match=r"different ways \(dense, 2:4, 2:4\)"):
        Export.read(str(folder)).of(parts)
    whole = Export.read(str(exported("llama", "permuted", dense="q_proj"))).of(parts)
    assert whole.pattern is None
    assert torch.equal(whole.permutation, layouts[parts[0]].permutation)


def test_what_is_folded_is_not_gathered(exported: Any) -> None:
    export = Export.read(str(exported("llama", "permuted", "kept")))
    assert all(layout.permutation is None for layout in export.layouts.values())


def test_linears_that_are_made_one_are_looked_at_together(exported: Any) -> None:
    export = Export.read(str(exported("llama", "sparse")))
    parts = [f"{LAYER}.self_attn.{name}_proj" for name in "qkv"]
    assert export.of(parts).pattern == Pattern(2, 4)
    assert export.of(["lm_head"]).pattern is None
    with pytest.raises(ValueError, match="read their input in different orders"):
        export.of([parts[0], f"{LAYER}.mlp.down_proj"])


def test_different_patterns_in_one_weight() -> None:
    layouts = {"a": Layout(Pattern(2, 4), True), "b": Layout(Pattern(4, 8), True)}
    with pytest.raises(ValueError, match=r"a, b, c are stored in different ways \(2:4, 4:8"):
        Export("here", layouts).of(["a", "b", "c"])
    codes = {name: Layout(Pattern(2, 4), True, Grid(bits)) for name, bits in (("a", 8), ("b", 4))}
    with pytest.raises(ValueError, match=r"different ways \(2:4 int8, 2:4 int4\)"):
        Export("here", codes).of(["a", "b"])
    dense = {"a": Layout(Pattern(2, 4)), "b": Layout(Pattern(4, 8))}
    assert Export("here", dense).of(["a", "b"]) is not None
    assert Export("here", dense).of(["a", "b"]).pattern is None


@pytest.mark.parametrize(
    ("layout", "part", "wrong"),
    [
        (Layout(Pattern(2, 4), True), 32, ""),
        (Layout(Pattern(2, 4), True), 4, "ends within a byte"),
        (Layout(Pattern(2, 4)), 4, ""),
        (Layout(Pattern(2, 4)), 18, "cut a group of 4"),
        (Layout(permutation=torch.arange(64)), 32, "put in order at run time"),
        (Layout(permutation=torch.arange(64)), 64, ""),
        (Layout(), 7, ""),
        (Layout(Pattern(2, 4), True, Grid(8)), 32, "cut the 64 that share a scale"),
        (Layout(Pattern(2, 4), True, Grid(8, 24)), 32, "cut the 24 that share a scale"),
        (Layout(Pattern(2, 4), True, Grid(4, 16)), 32, ""),
        (Layout(Pattern(1, 4), True, Grid(4, 4)), 16, ""),
    ],
)
def test_cuts_between_ranks(layout: Layout, part: int, wrong: str) -> None:
    if not wrong:
        layout.check_cut(64, part)
        return
    with pytest.raises(ValueError, match=wrong):
        layout.check_cut(64, part)


def test_folders_that_are_not_served(exported: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a masked export"):
        Export.read(str(exported("llama", "masked")))
    with pytest.raises(UserError, match="is no finished export of permllm"):
        Export.read(str(tmp_path))
    with pytest.raises(UserError, match="holds experts packed"):
        Export.read(str(exported("mixtral", "sparse", "kept")))


def test_damage_is_named(exported: Any) -> None:
    folder = exported("llama", "permuted")
    tensors = load_file(folder / "permllm.safetensors")
    name = next(name for name in tensors if name.endswith("permllm_order"))
    tensors[name].fill_(0)
    save_file(tensors, folder / "permllm.safetensors")
    with pytest.raises(UserError, match=f"'{name}' is no permutation"):
        Export.read(str(folder))
    manifest = json.loads((folder / "permllm.json").read_text())
    (folder / "permllm.json").write_text(json.dumps(manifest | {"permllm": 99}))
    with pytest.raises(UserError, match="this version reads up to"):
        Export.read(str(folder))


def test_experts_that_are_gathered_are_refused(exported: Any) -> None:
    with pytest.raises(UserError, match="puts the input of experts in order at run time"):
        Export.read(str(exported("qwen2-moe", "permuted", "random")))
