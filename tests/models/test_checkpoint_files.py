"""Files of models: complete, or refused with what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from permllm.errors import UserError
from permllm.models.sources import DirectorySource, GgufSource

WriteGguf = Callable[[Path], Path]


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.99])
def test_a_truncated_gguf_file_is_refused(
    tmp_path: Path, share: float, write_gguf: WriteGguf
) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    cut(path, share)
    with pytest.raises(UserError, match=r"a\.gguf' is no complete GGUF file"):
        GgufSource(path).check()


def test_something_else_is_no_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="is no complete GGUF file"):
        GgufSource(path).check()
    with pytest.raises(UserError, match="there is no GGUF file"):
        GgufSource(tmp_path / "b.gguf").check()


def test_a_gguf_file_without_a_models_sizes_is_refused(
    tmp_path: Path, write_gguf: Callable[..., Path]
) -> None:
    path = write_gguf(tmp_path / "a.gguf", sizes=False)
    with pytest.raises(UserError, match="holds no language model: it has no 'block_count'"):
        GgufSource(path).check()


def test_a_folder_without_a_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        DirectorySource(folder).check()


def test_a_broken_configuration_is_refused_with_its_place(folder: Path) -> None:
    (folder / "config.json").write_text('{\n  "a": }')
    with pytest.raises(UserError, match=r"config\.json:2:8: this is no JSON"):
        DirectorySource(folder).check()


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights: neither model\.safetensors nor") as caught:
        DirectorySource(folder).check()
    assert caught.value.hint is None


@pytest.mark.parametrize(
    ("other", "hint"),
    [("m.gguf", "source: gguf"), ("pytorch_model.bin", "which permllm does not read")],
)
def test_weights_in_another_form_are_refused_with_a_hint(
    folder: Path, other: str, hint: str
) -> None:
    (folder / "model.safetensors").rename(folder / other)
    with pytest.raises(UserError, match="no weights") as caught:
        DirectorySource(folder).check()
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("share", [0, 0.0001, 0.005, 0.5, 0.999])
def test_truncated_safetensors_are_refused(folder: Path, share: float) -> None:
    cut(folder / "model.safetensors", share)
    with pytest.raises(UserError, match=r"model\.safetensors' is no complete safetensors file"):
        DirectorySource(folder).check()


def test_safetensors_with_a_garbled_header_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(UserError, match="its header cannot be read"):
        DirectorySource(folder).check()


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks two\.safetensors, which model\.safe"):
        DirectorySource(folder).check()
    (folder / "two.safetensors").write_bytes((folder / "one.safetensors").read_bytes())
    DirectorySource(folder).check()


def test_an_index_without_a_map_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="the index has no 'weight_map'"):
        DirectorySource(folder).check()
