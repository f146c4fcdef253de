"""Ray clusters of this machine, and studies that run on them as users start them."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from permllm.files import read_sealed
from permllm.results import Results

with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="permllm[ray] is not installed")

TOKEN = secrets.token_hex(16)
"""What the clusters ask for."""

STUDY = """\
permllm: 1
name: tiny
model: {source: directory, path: model}
calibration: {dataset: {name: text, path: text.txt}, sequences: 4, length: 16, held_out: 2}
pattern: "2:4"
layers: {window: 1}
resources: {cpus: 1}
matrix:
  layers.permutation: [none, cp]
  layers.pruner: [mask, sparsegpt]
evaluate:
  - {name: perplexity, dataset: {name: text, path: text.txt}, length: 16, max_tokens: 128}
  - fidelity
export: [masked]
track: {mlflow: {}}
"""

SLOW = """\
import time
import attrs
import permllm
from permllm.components import PermutationLearner
from permllm.hooks import hookimpl


@attrs.frozen
class Slow(PermutationLearner):
    '''Waits, and then leaves everything as it is.'''

    name = "slow"
    only_scores = True

    def learn(self, window):
        import torch

        time.sleep(5)
        return {
            name: torch.arange(group.channels) for name, group in window.groups.items()
        }


@hookimpl
def permllm_permutations():
    return [Slow]
"""


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """Start a cluster of so many nodes with a CPU each for the block; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    port = address.rpartition(":")[2]
    with ExitStack() as stack:
        stack.enter_context(_node("--head", f"--port={port}", "--include-dashboard=false"))
        for _ in range(nodes - 1):
            stack.enter_context(_node(f"--address={address}"))
        yield address


@contextmanager
def _node(*words: str) -> Iterator[None]:
    # Paths of sockets are short.
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    words += ("--block", "--num-cpus=1", "--node-ip-address=127.0.0.1")
    node = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", *words, f"--temp-dir={temporary}"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        node.terminate()
        node.wait(timeout=60)
        shutil.rmtree(temporary, ignore_errors=True)


def environment() -> dict[str, str]:
    """The variables of a user and of a cluster with a token of its own."""
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "160", "RAY_USAGE_STATS_ENABLED": "0"}
    return os.environ | own | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


def begin(*words: str | Path, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "permllm", "run", *map(str, words)],
        cwd=cwd,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*words: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    process = begin(*words, cwd=cwd, **variables)
    try:
        said = process.communicate(timeout=400)
    finally:
        process.kill()
    return subprocess.CompletedProcess(words, process.returncode, *said)


def figures(out: Path) -> list[Any]:
    results = Results.from_dict(read_sealed(out / "results.json"))
    return [(one.label, one.figures, one.layers, one.exports, one.error) for one in results.runs]


def keys(cache: Path) -> list[str]:
    """Kind and key of each entry; what was computed twice is there twice, for its cost differs."""
    return sorted(str(path.relative_to(cache)).partition(".")[0] for path in cache.glob("*/*.*.*"))
