"""The cache: entries are whole or not there, room is made, processes get along."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.runner.caching.store import ABANDONED_SECONDS, Cache

SIZE = 100


def put(cache: Cache, key: str, content: str = "x" * SIZE) -> Path:
    path = cache.put("kind", key, ".txt", lambda path: write(path, content))
    assert path is not None
    return path


def write(path: Path, content: str) -> None:
    path.write_text(content)


def age(path: Path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(path, (at, at))


def test_what_was_put_is_found(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.find("kind", "a") is None
    assert cache.entries() == []
    path = put(cache, "a", "hello")
    assert cache.find("kind", "a") == path
    assert path.read_text() == "hello"
    assert cache.find("other", "a") is None
    assert cache.find("kind", "b") is None
    assert [entry.kind for entry in cache.entries()] == ["kind"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_entry_is_as_good_as_none(tmp_path: Path, damage: str) -> None:
    warnings: list[str] = []
    cache = Cache(tmp_path, warn=warnings.append)
    path = put(cache, "a")
    content = path.read_bytes()
    damaged = {"flip": b"y" + content[1:], "cut": content[:-1], "empty": b""}[damage]
    path.write_bytes(damaged)
    assert [is_damaged for _, is_damaged in cache.damaged()] == [True]
    assert cache.find("kind", "a") is None
    assert "damaged" in warnings[0]
    assert not path.exists()
    assert cache.find("kind", "a") is None
    assert put(cache, "a") == path
    assert cache.find("kind", "a") == path
    assert len(warnings) == 1


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=3 * SIZE)
    paths = {key: put(cache, key) for key in "abc"}
    for seconds, key in enumerate("cba"):
        age(paths[key], 100 + seconds)
    assert cache.find("kind", "a")
    put(cache, "d")
    assert [key for key in "abcd" if cache.find("kind", key)] == ["a", "c", "d"]


def test_an_entry_larger_than_the_limit_is_kept_alone(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=SIZE)
    put(cache, "a")
    put(cache, "b", "x" * 5 * SIZE)
    assert [key for key in "ab" if cache.find("kind", key)] == ["b"]


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 200))
def test_room_is_made_and_no_more(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"))
    for index, size in enumerate(sizes):
        age(put(cache, f"k{index}", "x" * size), len(sizes) - index)
    removed = cache.make_room(limit)
    left = [entry.bytes for entry in cache.entries()]
    assert sum(left) <= limit
    assert [entry.bytes for entry in removed] + left == sizes
    if removed:
        assert removed[-1].bytes + sum(left) > limit


def test_unfinished_files_are_no_entries_and_swept_once_they_are_old(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    put(cache, "a")
    unfinished = tmp_path / "kind" / "b.123.partial"
    unfinished.write_text("half")
    assert cache.find("kind", "b") is None
    assert len(cache.entries()) == 1
    assert cache.sweep() == 0
    age(unfinished, ABANDONED_SECONDS + 60)
    assert cache.sweep() == 1
    assert not unfinished.exists()
    assert len(cache.entries()) == 1


def test_a_write_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def broken(path: Path) -> None:
        path.write_text("half")
        raise KeyError("no")

    with pytest.raises(KeyError):
        cache.put("kind", "a", ".txt", broken)
    assert cache.find("kind", "a") is None


def test_a_cache_that_cannot_be_written_is_a_warning_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    warnings: list[str] = []
    cache = Cache(tmp_path / "file" / "cache", warn=warnings.append)
    assert cache.put("kind", "a", ".txt", lambda path: write(path, "x")) is None
    assert cache.put("kind", "b", ".txt", lambda path: write(path, "x")) is None
    assert len(warnings) == 1
    assert "cannot be written" in warnings[0]


WRITER = """
import sys
from pathlib import Path
from permllm.runner.caching.store import Cache

cache = Cache(Path(sys.argv[1]), limit=40_000)
for turn in range(60):
    for key in range(20):
        content = f"content of {key} " * 100
        path = cache.find("kind", str(key))
        if path is None:
            cache.put("kind", str(key), ".txt", lambda path: path.write_text(content) and None)
        else:
            try:
                assert path.read_text() == content
            except FileNotFoundError:
                pass
"""


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    cache = Cache(tmp_path)
    assert not any(is_damaged for _, is_damaged in cache.damaged())
    assert sum(entry.bytes for entry in cache.entries()) <= 40_000
    assert not list(tmp_path.rglob("*.partial"))
