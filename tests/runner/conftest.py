"""A small pipeline on a tiny model, as a file in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from permllm.registry import Registry
from permllm.testing.models import save_tiny

TEXT = "the quick brown fox jumps over the lazy dog and runs away from 27 other animals. "


@pytest.fixture
def registry() -> Registry:
    return Registry.load()


@pytest.fixture
def write_pipeline(tmp_path: Path) -> Callable[..., Path]:
    """Writes a pipeline file for a tiny model; keywords replace top-level keys."""

    def write(architecture: str = "llama", **changes: Any) -> Path:
        folder = tmp_path / architecture
        if not folder.exists():
            save_tiny(architecture, folder)
        for name in ("train", "test"):
            (tmp_path / f"{name}.txt").write_text((TEXT + name) * 150, encoding="utf-8")
        data = {
            "permllm": 1,
            "name": "tiny",
            "model": {"source": "directory", "path": architecture},
            "pattern": "2:4",
            "calibration": {
                "dataset": {"name": "text", "path": "train.txt"},
                "sequences": 4,
                "length": 32,
                "held_out": 2,
                "batch_size": 2,
            },
            "layers": {"permutation": {"name": "lcp", "block": 8, "steps": 3, "batch": 2}},
            "evaluate": [
                {
                    "name": "perplexity",
                    "dataset": {"name": "text", "path": "test.txt"},
                    "length": 32,
                    "max_tokens": 320,
                },
                "fidelity",
                "sparsity",
            ],
            "export": ["masked"],
            "track": {},
        } | changes
        path = tmp_path / "tiny.yaml"
        with path.open("w", encoding="utf-8") as file:
            YAML().dump(data, file)
        return path

    return write
