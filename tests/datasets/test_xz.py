"""Files of xz give what lzma.open gives, however they are asked for it."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.datasets.xz import XzFile


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xz") / "a.xz"


@given(parts=st.lists(st.binary(max_size=200), min_size=1, max_size=3), size=st.integers(1, 300))
def test_streams_are_read_one_after_the_other(path: Path, parts: list[bytes], size: int) -> None:
    path.write_bytes(b"".join(map(lzma.compress, parts)))
    with XzFile(path) as file:
        pieces = list(iter(lambda: file.read(size), b""))
        assert file.read(size) == b""
    assert b"".join(pieces) == b"".join(parts)
    assert all(len(piece) <= size for piece in pieces)


def test_nothing_is_read_into_no_room(path: Path) -> None:
    path.write_bytes(lzma.compress(b"text"))
    with XzFile(path) as file:
        assert file.readinto(bytearray()) == 0
        assert file.read() == b"text"


def test_what_is_cut_short_is_no_end(path: Path) -> None:
    path.write_bytes(lzma.compress(b"text" * 1000)[:-8])
    with XzFile(path) as file, pytest.raises(EOFError, match="it is cut short"):
        file.read()


def test_the_file_is_closed_with_it(path: Path) -> None:
    path.write_bytes(lzma.compress(b"text"))
    file = XzFile(path)
    file.close()
    assert file._file.closed
    with pytest.raises(ValueError, match="closed"):
        file.read()
