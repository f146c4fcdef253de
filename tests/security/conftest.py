"""Calls of the command line, and a tiny model to call it on, for what SECURITY.md promises."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import Forks, Processes

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


@pytest.fixture
def project(tmp_path: Path, tiny_project: Callable[..., Path]) -> Path:
    """A folder with a tiny model, a text and a pipeline file."""
    return tiny_project(tmp_path, PIPELINE)


@pytest.fixture
def permllm(project: Path, forks: Forks) -> Call:
    """``python -m permllm …`` in the project's folder, to its end; says yes to any question.

    With the folder of a package that is found when libraries are imported it is a new process.
    """

    def call(*words: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        yes = "y\n" * 9
        if path is None:
            return forks.run(*words, cwd=project, environment=environment, said=yes)
        known = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), known]))
        return Processes().run(*words, cwd=project, environment=environment, said=yes)

    return call
