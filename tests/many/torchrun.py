"""Starts several processes together, as users do, with ``torchrun``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import psutil

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")

WAIT = 240.0
"""Seconds after which processes that wait for each other are killed; a test takes a few."""


def torchrun(
    processes: int, *words: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """``torchrun`` of a script, or of a module after ``-m``, with one thread each, to its end."""
    own = [f"--nproc-per-node={processes}", "--standalone"]
    return subprocess.run(
        [*TORCHRUN, *own, *map(str, words)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )


def exported(out: Path) -> dict[str, str]:
    """The hash of every file of tensors that was exported."""
    files = sorted(out.glob("runs/*/exports/**/*.safetensors"))
    assert files
    return {str(path.relative_to(out)): sha256(path.read_bytes()).hexdigest() for path in files}


def second_killed(
    *words: str | Path, cwd: Path, when: Callable[[], bool]
) -> subprocess.CompletedProcess[str]:
    """``torchrun`` of a module with two processes, of which the second is killed at a moment."""
    begun = subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node=2", "--standalone", "-m", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + WAIT
    while not when():
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.02)
    (second,) = (
        one for one in psutil.Process(begun.pid).children() if one.environ().get("RANK") == "1"
    )
    second.kill()
    said = begun.communicate(timeout=WAIT)[1]
    return subprocess.CompletedProcess(words, begun.returncode, stderr=said)
