"""Stores of all sorts that a cache may have behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import s3_server, with_s3
from stores import empty_store

from permllm.runner.caching.object_store import ObjectStore


@pytest.fixture(scope="session")
def s3() -> Iterator[None]:
    """A server of S3, which is the one that s3fs finds."""
    with s3_server() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(params=["memory", "file", pytest.param("s3", marks=with_s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    return empty_store(request.param, tmp_path)
