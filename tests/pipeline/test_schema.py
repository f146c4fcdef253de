"""What the sections refuse themselves, and that every key is explained."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from permllm.fields.options import describe_options
from permllm.pipeline.schema import (
    MAX_NAME,
    MAX_SEED,
    SOURCES,
    Calibration,
    Layers,
    Override,
    Pipeline,
)


@pytest.mark.parametrize("cls", [Pipeline, Layers, Calibration, Override])
def test_every_key_is_explained(cls: type) -> None:
    for info in describe_options(cls):
        assert info.help, info.name


def test_sources_by_their_tags() -> None:
    assert set(SOURCES) == {"package", "gguf", "directory", "hub"}
    assert all(attrs.has(cls) for cls in SOURCES.values())


@pytest.mark.parametrize("name", ["a", "7b", "a b.c+d@e-f_g", "ü", "a" * MAX_NAME])
def test_names_of_folders(read: Any, name: str) -> None:
    assert read(f"name: {name!r}").name == name


@pytest.mark.parametrize("name", ["''", "' a'", "../a", "a/b", "-a", ".", "a" * (MAX_NAME + 1)])
def test_names_that_no_folder_should_have(refused: Any, name: str) -> None:
    assert f"name must be at most {MAX_NAME} letters" in refused(f"name: {name}")


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:12", "xpu", "xpu:0"])
def test_devices(read: Any, device: str) -> None:
    assert read(f"device: '{device}'").device == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:a", "cpu:0", "cuda:1 "])
def test_what_is_no_device(refused: Any, device: str) -> None:
    assert "3:9: device must be auto, cpu, cuda, cuda:N" in refused(f"device: '{device}'")


def test_windows_are_layers_or_all(read: Any, refused: Any) -> None:
    assert read("layers: {window: 1}").layers.window == 1
    assert "window must be at least 1" in refused("layers: {window: 0}")


def test_a_shared_residual_stream_needs_all_layers(read: Any, refused: Any) -> None:
    assert read("layers: {residual: shared}").layers.residual == "shared"
    message = refused("layers: {residual: shared, window: 3}")
    assert "needs window: all, not 3" in message
    assert "3:20" in message
    assert "residual must be one of free, shared, original" in refused("layers: {residual: own}")


def test_seeds_are_what_torch_takes(read: Any, refused: Any) -> None:
    assert read(f"seed: {MAX_SEED}").seed == MAX_SEED
    assert f"the largest whole number is {MAX_SEED}" in refused(f"seed: {MAX_SEED + 1}")
    assert "seed must be between 0 and" in refused("seed: -1")
