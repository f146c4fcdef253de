"""Starts several processes together, as users do, with ``torchrun``."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

WAIT = 240.0
"""Seconds after which processes that wait for each other are killed; a test takes a few."""


def torchrun(
    processes: int, *words: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """``torchrun`` of a script, or of a module after ``-m``, with one thread each, to its end."""
    own = [f"--nproc-per-node={processes}", "--standalone"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *own, *map(str, words)],
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
