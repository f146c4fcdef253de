"""``permllm cache``: what is in a cache, whether it is whole, and making room."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm.cli.cache import command
from permllm.cli.errors import call
from permllm.files import listing
from permllm.runner.caching.object_store import ObjectStore
from permllm.runner.caching.store import Cache
from permllm.runs.folder import CACHE, PIPELINE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder whose cache holds three entries of 100 bytes."""
    (tmp_path / PIPELINE).write_text("name: tiny\n")
    cache = Cache(tmp_path / CACHE)
    for kind, key in (("windows", "a"), ("windows", "b"), ("figures", "c")):
        cache.put(kind, key * 64, ".json", lambda path: path.write_text("x" * 100) and None)
    return tmp_path


def test_entries_are_counted_by_kind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, ["list", str(folder)]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    counts = {row[1].strip(): row[2].strip() for row in rows}
    assert counts == {"figures": "1", "windows": "2", "all": "3"}


def test_room_is_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, ["prune", str(folder / CACHE), "--limit", "0.00000015"]) == 0
    assert capsys.readouterr().out.startswith("removed 2 entries")
    assert len(Cache(folder / CACHE).entries()) == 1


def test_damage_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, ["verify", str(folder)]) == 0
    assert capsys.readouterr().out == "all 3 entries are whole\n"
    (entry,) = (folder / CACHE / "figures").iterdir()
    entry.write_text("y" * 100)
    assert call(command, ["verify", str(folder)]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"damaged: {entry}\n"
    assert "1 of 3 entries are damaged" in printed.err


def test_another_folder_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "absent"):
        assert call(command, ["prune", str(place)]) == 2
        assert f"{place} is no cache of permllm" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_is_in_a_store_is_listed_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{tmp_path}/store"
    assert call(command, ["list", url]) == 0
    assert "all" in capsys.readouterr().out
    cache = Cache.at(ObjectStore.at(url), tmp_path / "folder")
    for kind, key in (("windows", "a"), ("windows", "b"), ("figures", "c")):
        cache.put(kind, key * 64, ".json", lambda path: path.write_text("x" * 100) and None)
    assert call(command, ["list", url]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert {row[1].strip(): row[2].strip() for row in rows} == {
        "figures": "1",
        "windows": "2",
        "all": "3",
    }
    before = listing(tmp_path)
    for words in (["prune", url], ["verify", url]):
        assert call(command, words) == 2
        assert f"{url} is a store" in capsys.readouterr().err
    assert listing(tmp_path) == before


def test_a_url_with_a_password_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("list", "prune"):
        assert call(command, [word, "s3://me:secret@bucket"]) == 2
        assert "secret" not in capsys.readouterr().err
