"""Exports that were damaged after they were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import permllm
from permllm import UserError
from permllm.exporters.permuted import Permuted
from permllm.formats.export_files import check_files
from permllm.formats.logits import compare_logits, compare_recorded, float32_logits, record_logits
from permllm.formats.manifest import MANIFEST, read_manifest
from permllm.models.decoder import Decoder
from permllm.testing.exporters import pruned_export
from permllm.testing.models import tiny_model

WEIGHTS = "permllm.safetensors"
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    generator = torch.Generator().manual_seed(0)
    context = pruned_export(
        tiny_model("llama-gqa"),
        lambda name, group: torch.randperm(group.channels, generator=generator),
    )
    Permuted().export(context, folder)
    return folder


@pytest.fixture
def copy(export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def wrong(folder: Path) -> dict[str, str]:
    return {name: said for name, said in check_files(folder, read_manifest(folder)) if said}


def test_a_whole_export_is_right(export: Path) -> None:
    assert wrong(export) == {}
    loaded = permllm.load(str(export), dtype=torch.float64, device="cpu")
    assert loaded.model.dtype == torch.float64
    assert not loaded.model.training


def test_the_recorded_logits_are_the_models(export: Path) -> None:
    manifest = read_manifest(export)
    model = permllm.load(export).model
    tokens = torch.tensor(manifest.logits.tokens)
    logits = float32_logits(model, tokens)
    assert compare_recorded(manifest.logits, logits).holds
    assert not compare_recorded(manifest.logits, logits + 0.01 * logits.abs().max()).holds
    assert not compare_recorded(manifest.logits, logits * float("nan")).holds
    assert not compare_recorded(manifest.logits, logits[..., :4]).holds
    other = tiny_model("llama-gqa", seed=1)
    assert compare_recorded(manifest.logits, float32_logits(other, tokens)).argmax < 0.5


def test_agreement_of_logits() -> None:
    expected = torch.tensor([[[1.0, 3.0, 2.0], [0.0, -4.0, 1.0]]])
    assert compare_logits(expected, expected).holds
    other = torch.tensor([[[1.0, 3.0, 2.0], [1.2, -4.0, 1.0]]])
    found = compare_logits(expected, other)
    assert found.difference == pytest.approx(0.3)
    assert found.argmax == 0.5
    assert not found.holds
    assert compare_logits(expected, expected[:, :1]).argmax == 0
    entry = record_logits(torch.zeros(1, 2, dtype=torch.long), expected)
    assert entry.largest == 4.0
    assert compare_recorded(entry, expected).holds
    # Equally likely tokens are no disagreement.
    tied = torch.tensor([[[2.0, 2.0]]])
    assert compare_logits(tied, torch.tensor([[[2.0, 2.0 + 1e-6]]])).holds


def test_a_truncated_file_is_named(copy: Path) -> None:
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


def test_edited_weights(copy: Path) -> None:
    edit(copy, lambda tensors: tensors.update({NAME: tensors[NAME] * 1.001}))
    assert list(wrong(copy)) == [NAME]
    assert "its bytes are others" in wrong(copy)[NAME]


def test_weights_that_are_swapped(copy: Path) -> None:
    other = NAME.replace("up", "gate")
    edit(copy, lambda tensors: tensors.update({NAME: tensors[other], other: tensors[NAME]}))
    assert set(wrong(copy)) == {NAME, other}


def test_nan(copy: Path) -> None:
    edit(copy, lambda tensors: tensors[NAME].view(-1)[5:6].fill_(float("nan")))
    assert "NaN" in wrong(copy)[NAME]


def test_a_dense_weight(copy: Path) -> None:
    edit(copy, lambda tensors: tensors[NAME].fill_(1))
    assert "not 2:4 in stored order" in wrong(copy)[NAME]


def test_another_shape_and_dtype(copy: Path) -> None:
    edit(copy, lambda tensors: tensors.update({NAME: tensors[NAME][:-1].clone()}))
    assert "its shape is" in wrong(copy)[NAME]
    with pytest.raises(UserError, match=f"'{NAME}' has the shape"):
        permllm.load(copy)
    edit(copy, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].half()}))
    assert "its dtype is F16 and should be F32" in wrong(copy)["lm_head.weight"]


def test_tensors_that_are_lost_or_strange(copy: Path) -> None:
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


def test_an_order_that_is_none(copy: Path) -> None:
    name = "model.layers.0.input_layernorm.permllm_order"
    edit(copy, lambda tensors: tensors[name].fill_(0))
    with pytest.raises(UserError, match=f"'{name}' in .* is no permutation"):
        permllm.load(copy)


def test_a_gather_at_a_module_that_is_not_there(copy: Path) -> None:
    path = copy / MANIFEST
    data = json.loads(path.read_text())
    place = next(group for group in data["groups"] if group["at"])
    place["at"] = ["model.layers.7.norm"]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"no module 'model.layers.7.norm'"):
        permllm.load(copy)


def test_a_configuration_that_is_missing(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match="configuration"):
        permllm.load(copy)


def test_a_loaded_model_can_be_taken_apart_again(export: Path) -> None:
    """Gathers are hooks on modules, so that it runs layer by layer and is evaluated as any."""
    decoder = Decoder.trace(permllm.load(export).model)
    assert len(decoder.linears) == 14
