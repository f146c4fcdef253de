"""Files that are there as a whole or not at all, and JSON that is read with suspicion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from permllm.errors import UserError
from permllm.files import (
    DEEPEST,
    completing,
    holds,
    is_intact,
    listing,
    parse_json,
    read_json,
    read_sealed,
    replacing,
    sealed,
    sweep,
    workplace,
    write_json,
    write_sealed,
    write_text,
)


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "text.md"
    for text in ("ä\n", "b"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [file.name for file in path.parent.iterdir()] == ["text.md"]


def test_what_was_there_stays_where_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.md"
    write_text(path, "before")

    def full_disk(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    assert not holds(path, {})
    write_json(path, {"label": "größe"})
    assert "größe" in path.read_text(encoding="utf-8")
    assert holds(path, {"label": "größe"})
    assert not holds(path, {"label": "size"})


def test_nothing_is_written_through_a_link_that_lies_in_the_way(tmp_path: Path) -> None:
    """Whatever name somebody guesses: the place where is written is new."""
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("results.json", "results.json.partial", f"results.json.{os.getpid()}.partial"):
        (folder / name).symlink_to(mine)
    write_json(folder / "results.json", {"a": 1})
    assert mine.read_text() == "mine"
    assert not (folder / "results.json").is_symlink()


def test_a_folder_appears_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "exports" / "masked"
    with completing(path) as unfinished:
        (unfinished / "deep").mkdir()
        (unfinished / "deep" / "a.txt").write_text("a")
        assert not path.exists()
    assert list(listing(path)) == ["deep/a.txt"]
    assert [one.name for one in path.parent.iterdir()] == ["masked"]
    with pytest.raises(RuntimeError), completing(tmp_path / "other"):
        raise RuntimeError
    assert [one.name for one in tmp_path.iterdir()] == ["exports"]
    with pytest.raises(OSError, match="not empty"), completing(path) as unfinished:
        (unfinished / "b.txt").write_text("b")
    assert list(listing(path)) == ["deep/a.txt"]


KILLED = """
import os, signal, sys
from pathlib import Path
from permllm.files import replacing

with replacing(Path(sys.argv[1])) as unfinished:
    unfinished.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_writer_removes_what_a_dead_one_left(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    theirs = tmp_path / ".mine.partial"
    theirs.mkdir()
    with replacing(tmp_path / "live") as unfinished:
        # Not only this one's.
        assert not left.exists()
        assert sweep(tmp_path) == 0
        unfinished.write_text("live")
    assert sorted(one.name for one in tmp_path.iterdir()) == [".mine.partial", "live"]


def left_by(pid: int, folder: Path) -> Path:
    """What a process of this machine seems to be writing in a folder."""
    with workplace(folder) as work:
        name = work.name
    left = folder / name.replace(f"-{os.getpid()}-", f"-{pid}-")
    left.mkdir()
    return left


def test_what_a_dead_process_of_the_same_id_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container every start may be process 7."""
    left = left_by(os.getpid(), tmp_path)
    monkeypatch.chdir(tmp_path)
    with workplace(tmp_path) as mine:
        assert not left.exists()
        # However it is called.
        assert sweep(tmp_path) == sweep(Path()) == 0
        assert mine.exists()


@pytest.mark.skipif(os.name == "nt", reason="processes end otherwise there")
def test_what_a_process_left_goes_though_nobody_asked_how_it_ended(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    left = left_by(process.pid, tmp_path)
    assert process.stdout is not None
    process.stdout.read()
    with process.stdout:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert sweep(tmp_path) == 1
    assert not left.exists()
    process.wait()


def test_what_dead_writers_left_goes_from_subfolders_where_that_is_asked(tmp_path: Path) -> None:
    below = tmp_path / "runs" / "lcp"
    left = left_by(os.getpid(), below)
    assert sweep(tmp_path) == 0
    assert sweep(tmp_path, deep=True) == 1
    assert not left.exists()
    assert below.exists()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_what_is_sealed_is_intact_after_a_journey(data: dict[str, Any]) -> None:
    data.pop("sha256", None)
    text = json.dumps(sealed(data), indent=1)
    assert is_intact(parse_json(text, "a.json"))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_flipped_byte_of_a_sealed_file_changes_what_it_says(at: int, flip: int) -> None:
    data = {"label": "größe", "figures": {"a": 1.5, "b": [1, 2, None]}, "deep": {"x": {"y": "z"}}}
    text = json.dumps(sealed(data), ensure_ascii=False, indent=1).encode()
    damaged = bytearray(text)
    damaged[at % len(text)] ^= flip
    try:
        parsed = parse_json(damaged.decode(), "a.json")
    except (UnicodeDecodeError, UserError):
        return
    if is_intact(parsed):
        assert parsed == sealed(data)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff")
@example(b"[" * 100_000)
@example(b'{"a": ' * 100_000)
@example(b'{"a": ' + b"9" * 5000 + b"}")
@example(b'{"a": 1, "a": 2}')
@example(b'{"a":' + b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1) + b"}")
def test_whatever_a_file_holds_is_a_mapping_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(content)
    try:
        data = read_json(path)
    except UserError as error:
        assert error.file == str(path)  # noqa: PT017
    else:
        assert isinstance(data, dict)


def test_a_key_twice_among_many_is_found_at_once() -> None:
    """Not by comparing each with all others, which would take a quarter of an hour."""
    keys = [*(f'"{number}": 0' for number in range(200_000)), '"199999": 1']
    with pytest.raises(UserError, match="the key '199999' stands there twice"):
        parse_json("{" + ", ".join(keys) + "}", "a.json")


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="bytes are too many"):
        read_json(path)


def test_a_sealed_file_may_be_older_where_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, {"a": 1})
    assert read_sealed(path) == {"a": 1}
    write_json(path, {"a": 1})
    assert read_sealed(path, older=True) == {"a": 1}
    with pytest.raises(UserError, match="it is not what was written"):
        read_sealed(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_sealed(path)


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"\\udfff": 1}', '["\\ud83d.\\ude00"]'])
def test_halves_of_characters_are_no_text(text: str) -> None:
    with pytest.raises(UserError, match="halves of characters"):
        parse_json(text, "a.json")


def test_escaped_characters_are_text(tmp_path: Path) -> None:
    data = parse_json('{"a": "\\ud83d\\ude00 \\u00e9"}', "a.json")
    write_json(tmp_path / "b.json", data)
    assert read_json(tmp_path / "b.json") == data == {"a": "😀 é"}
