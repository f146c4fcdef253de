"""A Ray cluster of this machine, and a study for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from on_cluster import SLOW, STUDY, cluster


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_project: Callable[..., Path]) -> Path:
    """A folder with a tiny model, a study ``tiny.yaml`` and a plugin file that takes its time."""
    place = tiny_project(tmp_path_factory.mktemp("ray"), STUDY)
    (place / "slow.py").write_text(SLOW)
    return place


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of a cluster of two nodes with a CPU each."""
    with cluster(nodes=2) as address:
        yield address
