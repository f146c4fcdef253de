"""Calls of the command line, and a tiny model to call it on, for what SECURITY.md promises."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., "subprocess.CompletedProcess[str]"]

PIPELINE = """\
permllm: 1
name: tiny
model: {source: directory, path: model}
calibration: {dataset: {name: text, path: text.txt}, sequences: 2, length: 16, held_out: 0}
pattern: "2:4"
layers: {permutation: none}
evaluate: []
export: [masked, permuted]
track: {}
"""


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, to copy."""
    from permllm.testing.models import save_tiny

    return save_tiny("llama", tmp_path_factory.mktemp("saved"))


@pytest.fixture
def project(tmp_path: Path, saved: Path) -> Path:
    """A folder with a tiny model, a text and a pipeline file."""
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 50)
    (tmp_path / "tiny.yaml").write_text(PIPELINE)
    return tmp_path


@pytest.fixture
def permllm(project: Path) -> Call:
    """``python -m permllm …`` in the project's folder, to its end; says yes to any question."""

    def call(*words: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        if path is not None:
            known = environment.get("PYTHONPATH", "")
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), known]))
        return subprocess.run(
            [sys.executable, "-m", "permllm", *map(str, words)],
            cwd=project,
            env=environment,
            input="y\n" * 9,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call
