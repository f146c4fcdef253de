from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from permllm.components import Exporter
from permllm.errors import RunFailed
from permllm.exporters.masked import Masked
from permllm.exporters.permuted import Permuted
from permllm.exporters.sparse import Sparse
from permllm.formats.manifest import read_manifest
from permllm.models.checkpoint_files import tensors_in
from permllm.models.decoder import Decoder
from permllm.testing import check_exporter
from permllm.testing.exporters import pruned_export, toy_export
from permllm.testing.models import tiny_model


def tied() -> Any:
    """A model whose head shares its weight with the embeddings."""
    torch.manual_seed(0)
    config = tiny_model("llama-gqa").config
    config.tie_word_embeddings = True
    return AutoModelForCausalLM.from_config(config).eval()


def test_contract() -> None:
    check_exporter(Masked())


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2", "mixtral", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_opens_the_folder_with_equal_logits(
    tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    model = tied() if architecture == "tied" else tiny_model(architecture)
    # The parameters only, as transformers loads them: rotary frequencies stay in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for name, parameter in model.named_parameters():
        if "mlp" in name and parameter.dim() == 2:
            parameter[:, ::2] = 0
    Masked().export(toy_export(model), tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    # Experts are then multiplied one by one, as in the model that was traced for the export.
    Decoder.trace(reloaded)
    tokens = torch.arange(20)[None]
    assert reloaded.dtype == dtype
    assert torch.equal(reloaded(input_ids=tokens).logits, model(input_ids=tokens).logits)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json", ".md", ".yaml"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer("héllo")["input_ids"]) == "héllo"


def test_it_writes_nothing_to_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Masked().export(toy_export(tiny_model("llama-gqa")), tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("exporter", [Masked(), Permuted(), Sparse()], ids=lambda one: one.name)
def test_a_checkpoint_keeps_its_type(tmp_path: Path, exporter: Exporter) -> None:
    """Also where it was pruned in float32."""
    model = tiny_model("llama-gqa")
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    context = toy_export(model)
    for name, dtype in (("whole", None), ("half", torch.bfloat16)):
        (tmp_path / name).mkdir()
        exporter.export(attrs.evolve(context, dtype=dtype), tmp_path / name)
    sizes = [
        sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        for folder in (tmp_path / "whole", tmp_path / "half")
    ]
    assert sizes[1] < 0.65 * sizes[0]
    types = {dtype for _, _, dtype in tensors_in((tmp_path / "half").glob("*.safetensors"))}
    assert types <= {"BF16", "U8", "I64"}
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    # In memory nothing has changed.
    assert model.dtype == torch.float32


def test_files_without_the_pruned_weights_are_no_export(tmp_path: Path) -> None:
    """As transformers writes where the model has an adapter."""
    model = tiny_model("llama-gqa")
    save = model.save_pretrained

    def without(directory: Path, **options: Any) -> None:
        state = {k: v for k, v in model.state_dict().items() if "up_proj" not in k}
        save(directory, state_dict=state, **options)

    model.save_pretrained = without
    with pytest.raises(RunFailed, match=r"without 'model\.layers\.0\.mlp\.up_proj\.weight' and 1 "):
        Masked().export(toy_export(model), tmp_path)


def half_zeroed(path: Path) -> None:
    """As of a file system that lost pages: the header and the size are right."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("tear", "message"),
    [
        (half_zeroed, "does not compute what the pruned model does"),
        (cut_short, "what transformers wrote cannot be read back"),
    ],
)
def test_what_was_written_in_part_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tear: Callable[[Path], None], message: str
) -> None:
    model = tiny_model("llama-gqa")
    save = type(model).save_pretrained

    def torn(self: Any, directory: Path, **options: Any) -> None:
        save(self, directory, **options)
        tear(directory / "model.safetensors")

    monkeypatch.setattr(type(model), "save_pretrained", torn)
    with pytest.raises(RunFailed, match=message):
        Masked().export(toy_export(model), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_manifest_tells_every_group(tmp_path: Path) -> None:
    context = pruned_export(tiny_model("llama"), lambda name, group: torch.arange(group.channels))
    Masked().export(context, tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest.format == "masked"
    assert {group.name for group in manifest.groups} == set(context.decoder.groups)
    assert {(group.order, group.pattern) for group in manifest.groups} == {("stored", "2:4")}
    assert not any(entry.pattern for entry in manifest.tensors.values())
