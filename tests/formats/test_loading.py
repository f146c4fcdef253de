"""Exports that were damaged after they were written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import permllm
from permllm import UserError
from permllm.models.decoder import Decoder

WEIGHTS = "permllm.safetensors"
NAME = "model.layers.0.mlp.up_proj.weight"


def test_a_whole_export_is_right(export: Path, wrong) -> None:
    assert wrong(export) == {}
    loaded = permllm.load(str(export), dtype=torch.float64, device="cpu")
    assert loaded.model.dtype == torch.float64
    assert not loaded.model.training


def test_a_truncated_file_is_named(copy: Path, wrong) -> None:
    path = copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"'{path}' is no complete safetensors file"):
        permllm.load(copy)
    with pytest.raises(UserError, match=rf"'{path}'"):
        wrong(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(UserError, match="there is no file"):
        permllm.load(copy)


def test_another_shape_and_dtype(copy: Path, edit, wrong) -> None:
    edit(copy, lambda tensors: tensors.update({NAME: tensors[NAME][:-1].clone()}))
    assert "its shape is" in wrong(copy)[NAME]
    with pytest.raises(UserError, match=f"'{NAME}' has the shape"):
        permllm.load(copy)
    edit(copy, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].half()}))
    assert "its dtype is F16 and should be F32" in wrong(copy)["lm_head.weight"]


def test_tensors_that_are_lost_or_strange(copy: Path, edit, wrong) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["stranger"] = tensors.pop(NAME)

    edit(copy, change)
    assert "does not hold it" in wrong(copy)[NAME]
    assert "should not hold it" in wrong(copy)["stranger"]
    with pytest.raises(UserError, match="holds 'stranger', which the model has not"):
        permllm.load(copy)
    edit(copy, lambda tensors: tensors.pop("stranger"))
    with pytest.raises(UserError, match=f"no weights for {NAME}"):
        permllm.load(copy)


def test_an_order_that_is_none(copy: Path, edit) -> None:
    name = "model.layers.0.input_layernorm.permllm_order"
    edit(copy, lambda tensors: tensors[name].fill_(0))
    with pytest.raises(UserError, match=f"'{name}' in .* is no permutation"):
        permllm.load(copy)


def test_a_configuration_that_is_missing(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match="configuration"):
        permllm.load(copy)


def test_a_loaded_model_can_be_taken_apart_again(export: Path) -> None:
    """Gathers are hooks on modules, so that it runs layer by layer and is evaluated as any."""
    decoder = Decoder.trace(permllm.load(export).model)
    assert len(decoder.linears) == 14
