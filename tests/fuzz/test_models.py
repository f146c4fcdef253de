"""Models of somebody else: headers, configurations and indices that claim anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from permllm.formats.export_files import read_tensors
from permllm.models import checkpoint_files
from permllm.models.checkpoint_files import CONFIG, INDEX, WEIGHTS, check_folder
from permllm.models.loading import load, read_config
from permllm.models.shape import model_shape
from permllm.models.sources import DirectorySource, GgufSource
from permllm.testing.models import save_tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of tiny models."""
    folder = tmp_path_factory.mktemp("models")
    return [save_tiny(name, folder / name) for name in ("llama", "gpt2", "mixtral", "gemma3")]


def test_weights(fuzz: Any, models: list[Path]) -> None:
    path = models[0] / WEIGHTS
    kept = path.read_bytes()

    def read(change: Any) -> None:
        path.write_bytes(change.weights(kept))
        try:
            check_folder(models[0])
            list(read_tensors(path))
            if change.sample % 10 == 0:
                load(DirectorySource(models[0]))
        finally:
            path.write_bytes(kept)

    fuzz(read, 2000)


def test_configurations(fuzz: Any, models: list[Path]) -> None:
    texts = [(folder / CONFIG).read_bytes() for folder in models]

    def read(change: Any) -> None:
        number = change.sample % len(models)
        path = models[number] / CONFIG
        data = json.loads(texts[number])
        path.write_bytes(change.text(data) if change.structure else change.raw(texts[number]))
        source = DirectorySource(models[number])
        try:
            source.check()
            model_shape(read_config(source))
            if change.sample % 20 == 0:
                load(source)
        finally:
            path.write_bytes(texts[number])

    fuzz(read, 2000)


def test_indices(fuzz: Any, models: list[Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models[0], tmp_path / "model"))
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    from safetensors import safe_open

    with safe_open(folder / "model-00001-of-00001.safetensors", framework="pt") as file:
        names = list(file.keys())
    data = {
        "metadata": {"total_size": 1},
        "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors"),
    }

    def read(change: Any) -> None:
        (folder / INDEX).write_bytes(change.text(data))
        check_folder(folder)
        if change.sample % 10 == 0:
            load(DirectorySource(folder))

    fuzz(read, 2000)


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small complete GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_feed_forward_length(48)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    writer.add_token_merges(["a b"])
    writer.add_rope_freq_base(10000.0)
    writer.add_tensor("token_embd.weight", np.ones((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_gguf_headers(fuzz: Any, header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"

    def read(change: Any) -> None:
        path.write_bytes(change.gguf(header))
        checkpoint_files._gguf_fields.cache_clear()
        source = GgufSource(path)
        source.check()
        # What passed is what the reader of gguf can read.
        gguf.GGUFReader(path)
        if change.sample % 10 == 0:
            model_shape(read_config(source))

    fuzz(read, 2000)


def test_on_the_command_line(fuzz: Any, project: Path, say: Callable[..., str]) -> None:
    names = (CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json")
    kept = {name: (project / "model" / name).read_bytes() for name in names}

    def read(change: Any) -> None:
        name = names[change.sample % len(names)]
        path = project / "model" / name
        if name == WEIGHTS:
            path.write_bytes(change.weights(kept[name]))
        else:
            data = json.loads(kept[name])
            path.write_bytes(change.text(data) if change.structure else change.raw(kept[name]))
        try:
            say("check", project / "tiny.yaml", "--out", project / "new")
            say("eval", project / "model", "--evaluate", "sparsity", codes=(0, 2))
        finally:
            path.write_bytes(kept[name])

    fuzz(read, 200, share=0.03)
