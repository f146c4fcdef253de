"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from permllm.redaction import redacted


def write_text(path: Path, text: str) -> None:
    """Write a text file, and the folders it stands in, under a temporary name and rename it.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write at once; the last one's file stays.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as JSON in the same way."""
    write_text(path, as_json(data))


def as_json(data: Any) -> str:
    """What :func:`write_json` writes, without secrets."""
    return json.dumps(redacted(data), indent=2, ensure_ascii=False) + "\n"


def holds(path: Path, data: Any) -> bool:
    """Whether a file holds just what :func:`write_json` would write there."""
    return path.is_file() and path.read_text(encoding="utf-8") == as_json(data)
