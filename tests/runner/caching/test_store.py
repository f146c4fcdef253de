"""The cache: entries are whole or not there, room is made, processes get along."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.errors import UserError
from permllm.files import workplace
from permllm.runner.caching.store import Cache

SIZE = 100


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def put(cache: Cache, key: str, content: str = "x" * SIZE) -> Path:
    path = cache.put("tokens", hashed(key), ".json", lambda path: write(path, content))
    assert path is not None
    return path


def find(cache: Cache, key: str) -> Path | None:
    return cache.find("tokens", hashed(key))


def write(path: Path, content: str) -> None:
    path.write_text(content)


def age(path: Path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(path, (at, at))


def test_what_was_put_is_found(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert find(cache, "a") is None
    assert cache.entries() == []
    path = put(cache, "a", "hello")
    assert find(cache, "a") == path
    assert path.read_text() == "hello"
    assert cache.find("states", hashed("a")) is None
    assert find(cache, "b") is None
    assert [entry.kind for entry in cache.entries()] == ["tokens"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_entry_is_as_good_as_none(tmp_path: Path, damage: str) -> None:
    warnings: list[str] = []
    cache = Cache(tmp_path, warn=warnings.append)
    path = put(cache, "a")
    content = path.read_bytes()
    damaged = {"flip": b"y" + content[1:], "cut": content[:-1], "empty": b""}[damage]
    path.write_bytes(damaged)
    assert [is_damaged for _, is_damaged in cache.damaged()] == [True]
    assert find(cache, "a") is None
    assert "damaged" in warnings[0]
    assert not path.exists()
    assert find(cache, "a") is None
    assert put(cache, "a") == path
    assert find(cache, "a") == path
    assert len(warnings) == 1


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=3 * SIZE)
    paths = {key: put(cache, key) for key in "abc"}
    for seconds, key in enumerate("cba"):
        age(paths[key], 100 + seconds)
    assert find(cache, "a")
    put(cache, "d")
    assert [key for key in "abcd" if find(cache, key)] == ["a", "c", "d"]


def test_hidden_states_make_room_for_what_takes_longer_to_make(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=3 * SIZE)
    old, states, new = (
        put(cache, "a"),
        cache.put("states", hashed("s"), ".json", lambda path: write(path, "x" * SIZE)),
        put(cache, "b"),
    )
    assert states is not None
    for seconds, path in enumerate((old, new, states)):
        age(path, 100 - seconds)
    put(cache, "c")
    assert not states.exists()
    assert all(find(cache, key) for key in "abc")


def test_an_entry_larger_than_the_limit_is_kept_alone(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=SIZE)
    put(cache, "a")
    put(cache, "b", "x" * 5 * SIZE)
    assert [key for key in "ab" if find(cache, key)] == ["b"]


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


def test_what_dead_writers_left_is_no_entry_and_goes(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    put(cache, "a")
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    host = re.sub(r"[^\w-]", "-", socket.gethostname())
    left = tmp_path / "tokens" / f".permllm-{host}-{dead}-abcdefgh.partial"
    left.mkdir()
    (left / "content.json").write_text("half")
    alive = left.with_name(f".permllm-{host}-{os.getppid()}-abcdefgh.partial")
    alive.mkdir()
    assert len(cache.entries()) == 1
    assert cache.sweep() == 1
    assert not left.exists()
    assert alive.exists()
    assert len(cache.entries()) == 1


@pytest.mark.parametrize(
    "name",
    [
        "holiday/beach.2024010112000000.jpg",
        "tokens/beach.2024010112000000.json",
        f"holiday/{'0' * 64}.{'0' * 16}.json",
        f"tokens/{'0' * 64}.{'0' * 16}.jpg",
        "tokens/mine.partial",
        "tokens/.partial",
    ],
)
def test_nothing_of_the_users_is_an_entry(tmp_path: Path, name: str) -> None:
    cache = Cache(tmp_path / "cache")
    put(cache, "a")
    mine = cache.folder / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    age(mine, 1e6)
    assert len(cache.entries()) == 1
    cache.sweep()
    assert len(cache.make_room(0)) == 1
    assert mine.read_text() == "mine"


def test_a_folder_of_other_files_becomes_no_cache(tmp_path: Path) -> None:
    mine = tmp_path / "pics" / "tokens" / f"{'0' * 64}.{'0' * 16}.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("looks like an entry")
    warnings: list[str] = []
    cache = Cache(tmp_path / "pics", limit=0, warn=warnings.append)
    with pytest.raises(UserError, match="holds files and is no cache"):
        cache.check()
    assert cache.put("tokens", hashed("a"), ".json", lambda path: write(path, "x")) is None
    assert cache.make_room(0) == []
    assert mine.exists()
    assert len(warnings) == 1
    Cache(tmp_path / "new").check()


def test_a_cache_whose_first_writer_was_killed_is_none_of_other_files(tmp_path: Path) -> None:
    """It has no mark then."""
    with workplace(tmp_path) as work:
        left = work
    left.mkdir()
    cache = Cache(tmp_path)
    cache.check()
    put(cache, "a")
    assert not left.exists()
    left.mkdir()
    assert cache.sweep() == 1
    assert not left.exists()


def test_an_entry_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    cache = Cache(tmp_path, limit=SIZE, warn=warnings.append)
    put(cache, "a")

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    for key in "bc":
        put(cache, key)
    assert find(cache, "c")
    assert warnings == [
        f"the cache entry {cache.entries()[0].path} cannot be removed: Permission denied"
    ]


def test_a_write_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def broken(path: Path) -> None:
        path.write_text("half")
        raise KeyError("no")

    with pytest.raises(KeyError):
        cache.put("tokens", hashed("a"), ".json", broken)
    assert find(cache, "a") is None


def test_a_cache_that_cannot_be_written_is_a_warning_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    warnings: list[str] = []
    cache = Cache(tmp_path / "file" / "cache", warn=warnings.append)
    assert cache.put("tokens", hashed("a"), ".json", lambda path: write(path, "x")) is None
    assert cache.put("tokens", hashed("b"), ".json", lambda path: write(path, "x")) is None
    assert len(warnings) == 1
    assert "cannot be written" in warnings[0]


WRITER = """
import sys
from pathlib import Path
from permllm.errors import UserError
from permllm.runner.caching.store import Cache

cache = Cache(Path(sys.argv[1]), limit=40_000)
for turn in range(60):
    for number in range(20):
        content = f"content of {number} " * 100
        key = f"{number:064x}"
        path = cache.find("tokens", key)
        if path is None:
            cache.put("tokens", key, ".json", lambda path: path.write_text(content) and None)
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
