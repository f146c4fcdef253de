"""Stores that a cache may have behind it."""

from __future__ import annotations

import secrets
from pathlib import Path

from s3_server import BUCKET

from permllm.runner.caching.object_store import ObjectStore


def empty_store(protocol: str, folder: Path) -> ObjectStore:
    """A store without anything in it; a local one is in the folder."""
    if protocol == "file":
        return ObjectStore.at(f"file://{folder}/store")
    return ObjectStore.at(f"{protocol}://{BUCKET}/{secrets.token_hex(8)}")
