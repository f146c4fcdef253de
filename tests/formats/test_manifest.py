from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permllm import UserError
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
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_fields_of_later_versions_are_left_aside(tmp_path: Path) -> None:
    changed(tmp_path, lambda data: data.update(mood="good"))
    assert read_manifest(tmp_path) == EXAMPLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(permllm=2, version="9.0"), "permllm 9.0 wrote this manifest"),
        (lambda data: data.update(permllm="one"), "'permllm' is not its number"),
        (lambda data: data.pop("permllm"), "'permllm' is not its number"),
        (lambda data: data.pop("tensors"), "the manifest is damaged: tensors: 'tensors' is miss"),
        (lambda data: data.update(format="holographic"), "damaged: format: expected 'permuted' or"),
        (
            lambda data: data["groups"][0].update(channels="many"),
            "the manifest is damaged: groups.0.channels: expected a whole number, not the text",
        ),
        (
            lambda data: data["groups"][0].update(linears="a.down"),
            "the manifest is damaged: groups.0.linears: expected a list of texts",
        ),
        (lambda data: data["logits"]["values"][0].append(True), "values.0.2: expected a number"),
    ],
)
def test_bad_manifests(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    changed(tmp_path, change)
    with pytest.raises(UserError, match=message) as caught:
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
