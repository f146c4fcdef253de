"""An export that several files look at, or damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from permllm.exporters.permuted import Permuted
from permllm.formats.export_files import check_files
from permllm.formats.manifest import read_manifest
from permllm.testing.exporters import pruned_export
from permllm.testing.models import tiny_model

WEIGHTS = "permllm.safetensors"


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A permuted export, to read or to copy."""
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
    """A copy of it, to damage."""
    return Path(shutil.copytree(export, tmp_path / "copy"))


@pytest.fixture
def edit():
    """Changes the tensors of an export."""

    def call(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return call


@pytest.fixture
def wrong():
    """What is wrong with the tensors of an export, by their names."""

    def call(folder: Path) -> dict[str, str]:
        return {name: why for name, why in check_files(folder, read_manifest(folder)) if why}

    return call
