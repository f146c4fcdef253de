"""Files of models: complete, or refused with what is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from permllm.errors import UserError
from permllm.models.checkpoint_files import check_folder, check_gguf, inside, saved_dtype
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
    with pytest.raises(UserError, match=r"is no complete safetensors file: .*header"):
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


def shards(folder: Path, name: str) -> DirectorySource:
    """The model with an index that names one shard."""
    (folder / "model.safetensors").rename(folder / "shard")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    return DirectorySource(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "shard", "", "x.safetensors.bin"])
def test_an_index_that_names_other_files_is_refused(folder: Path, name: str) -> None:
    source = shards(folder, name)
    (folder / "shard").rename(folder / (name or "y"))
    with pytest.raises(UserError, match="which is no safetensors file") as caught:
        source.check()
    assert caught.value.file == str(folder / "model.safetensors.index.json")


@pytest.mark.parametrize("name", ["n" * 300, "a/" + "ü" * 128, "n/" * 2100, "a\0b"])
def test_an_index_that_names_what_no_file_is_called_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="which is no file of the model's folder"):
        shards(folder, f"{name}.safetensors").check()


def test_an_index_with_halves_of_characters_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="halves of characters"):
        shards(folder, "a\ud800b.safetensors").check()


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, saved: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((saved / "model.safetensors").read_bytes())
    for number, name in enumerate(
        ["../outside.safetensors", str(outside), "link.safetensors", "sub/outside.safetensors",
         "in/../../outside.safetensors", "C:\\outside.safetensors", "..\\outside.safetensors"]
    ):  # fmt: skip
        inner = tmp_path / str(number)
        shutil.copytree(saved, inner)
        (inner / "link.safetensors").symlink_to(outside)
        (inner / "sub").symlink_to(tmp_path)
        with pytest.raises(UserError, match="which is no file of the model's folder"):
            shards(inner, name).check()


def test_snapshots_of_the_hubs_cache_go_on_working(tmp_path: Path, saved: Path) -> None:
    cache = tmp_path / "models--owner--tiny"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(saved.iterdir()):
        (cache / "blobs" / str(number)).write_bytes(path.read_bytes())
        name = "one.safetensors" if path.suffix == ".safetensors" else path.name
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    index = snapshot / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    DirectorySource(snapshot).check()
    assert inside(snapshot, "one.safetensors")


def test_files_of_a_folder_are_inside(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert inside(tmp_path, "a.safetensors")
    assert inside(tmp_path, "sub/a.safetensors")
    for name in ("", ".", "..", "/", "a\0b", "loop/a", "/etc/passwd", "//host/share", "C:a"):
        assert not inside(tmp_path, name), name


def header(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def tensor(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, bytes] = {
    "a pickle": pickle.dumps({"weight": [1.0] * 100}),
    "a zip file, as torch.save writes": b"PK\x03\x04" + bytes(400),
    "a list": struct.pack("<Q", 2) + b"[]",
    "a deep list": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a text for a tensor": header(a="x"),
    "a text for a shape": header(a=tensor("4", [0, 4])),
    "a size of half": header(a=tensor([0.5], [0, 2])) + bytes(2),
    "a negative size": header(a=tensor([-1], [0, 4])) + bytes(4),
    "a huge shape": header(a=tensor([2**62, 2**62], [0, 4])) + bytes(4),
    "a size of many digits": header(a=tensor([10**50], [0, 4])) + bytes(4),
    "an unknown type": header(a=tensor([1], [0, 4], "Q99")) + bytes(4),
    "a type of many": header(a=tensor([1], [0, 4], ["F32"])) + bytes(4),
    "a negative offset": header(a=tensor([1], [-4, 0])) + bytes(4),
    "offsets in reverse": header(a=tensor([1], [4, 0])) + bytes(4),
    "one offset": header(a=tensor([1], [0])) + bytes(4),
    "offsets beyond the end": header(a=tensor([4], [0, 16])) + bytes(4),
    "tensors on each other": header(a=tensor([2], [0, 8]), b=tensor([1], [4, 8])) + bytes(8),
    "a gap": header(a=tensor([1], [0, 4]), b=tensor([1], [8, 12])) + bytes(12),
    "a shape that its bytes do not fit": header(a=tensor([3], [0, 4])) + bytes(4),
}


@pytest.mark.parametrize("what", HEADERS)
def test_safetensors_whose_header_does_not_fit_are_refused(folder: Path, what: str) -> None:
    (folder / "model.safetensors").write_bytes(HEADERS[what])
    with pytest.raises(UserError, match=r"model\.safetensors' is no complete safetensors file"):
        DirectorySource(folder).check()


def test_a_part_of_a_gguf_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model-00002-of-00003.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(UserError, match="is part 2 of 3 of a model") as caught:
        check_gguf(path)
    assert "llama-gguf-split --merge" in str(caught.value.hint)


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "org/base"}))
    with pytest.raises(UserError, match="has no tokenizer") as caught:
        check_folder(folder)
    assert "'org/base'" in str(caught.value.hint)
    # Those of SentencePiece alone will do.
    (folder / "spiece.model").write_bytes(b"")
    check_folder(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_that_a_checkpoint_is_saved_in(folder: Path, dtype: torch.dtype) -> None:
    config = json.loads((folder / "config.json").read_text())
    name = str(dtype)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": name[6:]}))
    assert saved_dtype(folder) == dtype
    (folder / "config.json").write_text(json.dumps({"text_config": {"torch_dtype": name}}))
    assert saved_dtype(folder) == dtype
    # Where nothing is said, it is that of most numbers.
    (folder / "config.json").write_text("{}")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {key: one if one.dim() == 1 else one.to(dtype) for key, one in tensors.items()},
        folder / "model.safetensors",
    )
    assert saved_dtype(folder) == dtype
