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
        permllm.load(copy, check=False)
    with pytest.raises(UserError, match=rf"'{path}'"):
        wrong(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(UserError, match="there is no file"):
        permllm.load(copy, check=False)


def test_another_shape_and_dtype(copy: Path, edit, wrong) -> None:
    edit(copy, lambda tensors: tensors.update({NAME: tensors[NAME][:-1].clone()}))
    assert "its shape is" in wrong(copy)[NAME]
    with pytest.raises(UserError, match=f"'{NAME}' has the shape"):
        permllm.load(copy, check=False)
    edit(copy, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].half()}))
    assert "its dtype is F16 and should be F32" in wrong(copy)["lm_head.weight"]


def test_tensors_that_are_lost_or_strange(copy: Path, edit, wrong) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["stranger"] = tensors.pop(NAME)

    edit(copy, change)
    assert "does not hold it" in wrong(copy)[NAME]
    assert "should not hold it" in wrong(copy)["stranger"]
    with pytest.raises(UserError, match="holds 'stranger', which the model has not"):
        permllm.load(copy, check=False)
    edit(copy, lambda tensors: tensors.pop("stranger"))
    with pytest.raises(UserError, match=f"no weights for {NAME}"):
        permllm.load(copy, check=False)


def test_an_order_that_is_none(copy: Path, edit) -> None:
    name = "model.layers.0.input_layernorm.permllm_order"
    edit(copy, lambda tensors: tensors[name].fill_(0))
    with pytest.raises(UserError, match=f"'{name}' in .* is no permutation"):
        permllm.load(copy, check=False)


def test_a_configuration_that_is_missing(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match="configuration"):
        permllm.load(copy, check=False)


def test_a_loaded_model_can_be_taken_apart_again(export: Path) -> None:
    """Gathers are hooks on modules, so that it runs layer by layer and is evaluated as any."""
    decoder = Decoder.trace(permllm.load(export).model)
    assert len(decoder.linears) == 14


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("tokenizer.json", b"{}", "it is not what was exported"),
        ("config.json", None, "it is missing"),
        ("generation_config.json", b"{}", "it is not what was exported"),
        ("README.md", None, "it is missing"),
        ("model.safetensors", b"dense", "it was not exported, and does not belong here"),
        ("modeling_llama.py", b"print()", "it was not exported, and does not belong here"),
        ("deep/adapter_config.json", b"{}", "it was not exported, and does not belong here"),
    ],
)
def test_every_file_counts(copy: Path, name: str, content: bytes | None, why: str) -> None:
    path = copy / name
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"is not what was exported: {name}: {why}"):
        permllm.load(copy)


def test_what_people_publish_with_a_model_is_no_stranger(copy: Path) -> None:
    for name in (".gitattributes", "LICENSE", "pictures/loss.png", ".git/config"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("mine")
    (copy / "README.md").write_text("# better words")
    assert permllm.load(copy).model is not None
