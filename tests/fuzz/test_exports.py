"""Exports: what changed in their manifests and weights is found, whatever it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from permllm.exporters.permuted import Permuted
from permllm.exporters.sparse import Sparse
from permllm.formats.export_files import check_files, check_folder
from permllm.formats.loading import load
from permllm.formats.manifest import MANIFEST, read_manifest
from permllm.testing.exporters import pruned_export
from permllm.testing.models import tiny_model


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Exports of each format, with gathers and without."""
    folders = []
    exporters = {
        "permuted": Permuted(),
        "sparse": Sparse(),
        "int4": Sparse(values="int4", group_size=8, rounding="nearest"),
    }
    for name, exporter in exporters.items():
        generator = torch.Generator().manual_seed(0)
        context = pruned_export(
            tiny_model("llama-gqa"),
            lambda name, group: torch.randperm(group.channels, generator=generator),  # noqa: B023
        )
        folders.append(tmp_path_factory.mktemp(name))
        exporter.export(context, folders[-1])
    return folders


def test_manifests(fuzz: Any, exports: list[Path], attempt: Callable[..., None]) -> None:
    texts = [(folder / MANIFEST).read_bytes() for folder in exports]
    whole = [read_manifest(folder) for folder in exports]

    def read(change: Any) -> None:
        number = change.sample % len(exports)
        path = exports[number] / MANIFEST
        data = json.loads(texts[number])
        path.write_bytes(
            change.text(data, seal=True) if change.structure else change.raw(texts[number])
        )
        try:
            manifest = read_manifest(exports[number])
            if not change.is_resealed:
                # Those of versions that did not seal say of nothing that it is there.
                assert manifest == whole[number] or not manifest.contents
            attempt(
                lambda: check_folder(exports[number], manifest),
                lambda: list(check_files(exports[number], manifest)),
                lambda: load(exports[number], check=False) if change.is_resealed else None,
            )
        finally:
            path.write_bytes(texts[number])

    fuzz(read, 2000)


@pytest.mark.parametrize("number", [1, 2], ids=["sparse", "int4"])
def test_weights(fuzz: Any, exports: list[Path], attempt: Callable[..., None], number: int) -> None:
    folder = exports[number]
    (path,) = folder.glob("*.safetensors")
    kept, manifest = path.read_bytes(), read_manifest(folder)

    def read(change: Any) -> None:
        changed = change.weights(kept)
        path.write_bytes(changed)
        try:
            found = [why for _, why in check_files(folder, manifest) if why]
            assert found or change.same_tensors(kept, changed)
            attempt(lambda: load(folder, check=False))
        finally:
            path.write_bytes(kept)

    fuzz(read, 2000)


def test_on_the_command_line(
    fuzz: Any, exports: list[Path], tmp_path: Path, say: Callable[..., str]
) -> None:
    folder = Path(shutil.copytree(exports[0], tmp_path / "copy"))
    kept = (folder / MANIFEST).read_bytes()

    def read(change: Any) -> None:
        data = json.loads(kept)
        (folder / MANIFEST).write_bytes(
            change.text(data, seal=True) if change.structure else change.raw(kept)
        )
        say("inspect", folder)
        say("inspect", folder, "--json")
        said = say("verify", folder)
        assert change.is_resealed or "error: " in said or said.count("are those that") >= 1

    fuzz(read, 300, share=0.03)
