from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permllm import UserError
from permllm.files import read_sealed, write_json, write_sealed
from permllm.formats.manifest import (
    MANIFEST,
    GroupEntry,
    LogitsEntry,
    Manifest,
    TensorEntry,
    read_manifest,
    write_manifest,
)

EXAMPLE = Manifest(
    permllm=1,
    version="0.1.0",
    format="permuted",
    groups=(
        GroupEntry("a:down", ("a.down",), "2:4", 48, "folded", into=("a.gate.weight",)),
        GroupEntry("a:q,k", ("a.q", "a.k"), "2:4", 32, "gathered", at=("a.norm",), reason="so"),
        GroupEntry("a:o", ("a.o",), None, 32, "gathered", at=("a.o",), reason="so"),
    ),
    tensors={
        "a.down.weight": TensorEntry("model.safetensors", "00ff", (32, 48), "F32", "2:4"),
        "a.norm.weight": TensorEntry("model.safetensors", "ff00", (32,), "F32"),
        "a.norm.permllm_order": TensorEntry("model.safetensors", "ff01", (32,), "I64"),
        "a.down.values": TensorEntry("model.safetensors", "ff02", (32, 24), "F32"),
        "a.down.indices": TensorEntry("model.safetensors", "ff03", (32, 6), "U8"),
    },
    logits=LogitsEntry(((1, 2),), "float32", ((0, 3), (1, 2)), ((2.5, 1.0), (0.1, -7.0)), 7.0),
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, EXAMPLE)
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    assert read_manifest(tmp_path) == EXAMPLE
    assert [group.gathers_inputs for group in EXAMPLE.gathers] == [False, True]


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    write_manifest(tmp_path, EXAMPLE)
    path = tmp_path / MANIFEST
    data = read_sealed(path)
    change(data)
    write_sealed(path, data)


def down(data: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = data["tensors"]["a.down.weight"]
    return entry


def packed(shape: list[int]) -> dict[str, Any]:
    return {"pattern": "2:4", "shape": shape, "axis": -1}


def test_fields_of_later_versions_are_left_aside(tmp_path: Path) -> None:
    changed(tmp_path, lambda data: data.update(mood="good"))
    assert read_manifest(tmp_path) == EXAMPLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(permllm=3, version="9.0"), "permllm 9.0 wrote this manifest"),
        (lambda data: data.update(permllm="one"), "'permllm' is not its number"),
        (lambda data: data.pop("permllm"), "'permllm' is not its number"),
        (
            lambda data: data.pop("tensors"),
            "the manifest is damaged: object missing required field 'tensors'",
        ),
        (
            lambda data: data.update(format="holographic"),
            "damaged: format: invalid enum value 'holographic'",
        ),
        (
            lambda data: data["groups"][0].update(channels="many"),
            r"the manifest is damaged: groups\[0\].channels: expected 'int', got 'str'",
        ),
        (
            lambda data: data["groups"][0].update(linears="a.down"),
            r"the manifest is damaged: groups\[0\].linears: expected 'array', got 'str'",
        ),
        (
            lambda data: data["logits"]["values"][0].append(True),
            r"values\[0\]\[2\]: expected 'float'",
        ),
        (lambda data: data["logits"]["values"][0].append(1.0), "logits.indices: they are not as"),
        (lambda data: data["logits"].update(tokens=[[1], [2, 3]]), "logits.tokens: they are not"),
        (lambda data: data["logits"]["tokens"].clear(), "logits.tokens: they are not sequences"),
        (lambda data: data["logits"]["tokens"][0].__setitem__(0, -1), "is no number of one"),
        (lambda data: data["logits"]["indices"][0].__setitem__(0, 2**40), "is no number of one"),
        (lambda data: data["logits"].update(largest=math.inf), "logits.largest: it is no size"),
        (lambda data: data["logits"]["values"][0].__setitem__(0, math.nan), "not all finite"),
        (lambda data: data.update(tensors={}), "tensors: there are none"),
        (
            lambda data: down(data).update(pattern="0:4"),
            r"\['a.down.weight'\].pattern: pattern 0:4",
        ),
        (lambda data: down(data).update(pattern="2:" + "4" * 5000), "is not N:M"),
        (lambda data: down(data).update(axis=7), "7 is neither -1 nor -2"),
        (lambda data: down(data).update(shape=[2**60, 4]), "is the shape of no tensor"),
        (lambda data: down(data).update(shape=[-1, 4]), "is the shape of no tensor"),
        (lambda data: down(data).update(file="../x.safetensors"), "is no file of the folder"),
        (lambda data: down(data).update(file="/x.safetensors"), "is no file of the folder"),
        (lambda data: down(data).update(file="x" * 300 + ".safetensors"), "is no file of the fol"),
        (lambda data: down(data).update(file="model.bin"), "is no file of the folder"),
        (lambda data: data.update(contents={"a/../../b": "00"}), "is no file of the folder"),
        (lambda data: data["groups"][1].update(channels=2**31), "are not those of a.norm"),
        (lambda data: data["groups"][1].update(channels=10**30), "groups|integer"),
        (lambda data: data["packed"].update(x=packed([2**20, 2**20])), "hold no values of it"),
        (
            lambda data: data["packed"].update({"a.down": packed([2**20, 2**20])}),
            r"packed\['a.down'\].shape: \(1048576, 1048576\) does not fit values of \(32, 24\)",
        ),
    ],
)
def test_bad_manifests(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    changed(tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(tmp_path)
    assert caught.value.file == str(tmp_path / MANIFEST)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    write_manifest(tmp_path, EXAMPLE)
    path = tmp_path / MANIFEST
    path.write_text(path.read_text().replace("2.5", "2.6"))
    with pytest.raises(UserError, match="the manifest is damaged: it is not what was written"):
        read_manifest(tmp_path)


def test_a_manifest_of_a_version_without_hashes_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, EXAMPLE)
    path = tmp_path / MANIFEST
    data = read_sealed(path)
    del data["contents"]
    write_json(path, data)
    assert read_manifest(tmp_path) == EXAMPLE


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "[" * 100_000, '{"permllm": ' + "1" * 5000 + "}", '{"permllm": {"a": [1]}}'],
)
def test_what_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError) as caught:
        read_manifest(tmp_path)
    assert caught.value.file == str(tmp_path / MANIFEST)


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"permllm": 1')
    with pytest.raises(UserError, match="no JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("permllm.safetensors", "interrupted"),
        ("config.json", "AutoModelForCausalLM"),
        ("notes.txt", "name the folder of an export"),
    ],
)
def test_folders_without_one(tmp_path: Path, file: str, hint: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(UserError, match="no finished export") as caught:
        read_manifest(tmp_path)
    assert hint in str(caught.value.hint)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        read_manifest(tmp_path / "nowhere")
