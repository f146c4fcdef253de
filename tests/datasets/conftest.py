"""Files for datasets to read."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def write():
    """Writes a file."""

    def call(path: Path, data: str | bytes) -> Path:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return call
