"""Text of files: compressed, in other encodings, damaged; never more of it than is asked for."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from itertools import islice
from pathlib import Path

import pyarrow
import pytest

from permllm.datasets import streams
from permllm.datasets.jsonl import Csv, JsonLines
from permllm.datasets.local_files import label_of
from permllm.datasets.streams import lines, whole
from permllm.datasets.text import Text
from permllm.errors import UserError


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_read(tmp_path: Path, suffix: str, write) -> None:
    compress = COMPRESS[suffix]
    text = "naïve café\n" * 20_000
    path = write(tmp_path / f"a.txt.{suffix}", compress(text.encode()))
    assert list(Text(path).texts("train")) == [text]
    assert Text(path).label() == "a"
    rows = write(tmp_path / f"a.json.{suffix}", compress(b'{"text": "one"}\n{"text": "two"}'))
    assert list(JsonLines(rows).texts("train")) == ["one", "two"]
    table = write(tmp_path / f"a.tsv.{suffix}", compress(b"n\ttext\n1\tone\n"))
    assert list(Csv(table).texts("train")) == ["one"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_two_archives_in_one_file_are_read_on(tmp_path: Path, suffix: str, write) -> None:
    compress = COMPRESS[suffix]
    path = write(tmp_path / f"a.{suffix}", compress(b"one\n") + compress(b"two\n"))
    assert whole(path) == "one\ntwo\n"


def test_the_first_bytes_tell_and_not_the_name(tmp_path: Path, write) -> None:
    assert whole(write(tmp_path / "a.txt", gzip.compress(b"text"))) == "text"
    assert whole(write(tmp_path / "a.gz", "text")) == "text"
    assert whole(write(tmp_path / "b.txt", "BZhang wrote this")) == "BZhang wrote this"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_damaged_archives_are_refused_once_the_damage_is_reached(
    tmp_path: Path, suffix: str, write
) -> None:
    noise = "".join(f"{n * n % 7919} " for n in range(200_000)).encode()
    data = COMPRESS[suffix](b'{"text": "one"}\n' * 100_000 + noise)
    path = write(tmp_path / f"a.{suffix}", data[: len(data) - len(data) // 8])
    assert list(islice(JsonLines(path).texts("train"), 3)) == ["one"] * 3
    with pytest.raises(UserError, match=rf"cannot read .*a\.{suffix}|not JSON"):
        list(JsonLines(path).texts("train"))
    with pytest.raises(UserError, match=rf"cannot read .*a\.{suffix}"):
        whole(path)


def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write) -> None:
    monkeypatch.setattr(streams, "LONGEST_LINE", 200_000)
    monkeypatch.setattr(streams, "LARGEST_UNPACKED", 200_000)
    path = write(tmp_path / "a.gz", gzip.compress(b" " * 10_000_000))
    for read in (lambda: list(lines(path)), lambda: list(JsonLines(path).texts("train"))):
        with pytest.raises(UserError, match=r"a\.gz:1: more than 200,000 characters .* one line"):
            read()
    with pytest.raises(UserError, match="more than 200,000 characters are in this compressed"):
        whole(path)
    array = write(tmp_path / "b.gz", gzip.compress(b'[{"text": "' + b"a" * 10_000_000))
    with pytest.raises(UserError, match=r"b\.gz:1: more than 200,000 characters"):
        list(JsonLines(array).texts("train"))


def with_large_dictionary(packed: bytes) -> bytes:
    """A file of xz whose header asks for 1.5 GiB to read it."""
    size = (packed[12] + 1) * 4
    header = bytearray(packed[12 : 12 + size])
    # The filter LZMA2, with one byte of properties: the size, (2 | 1) << (37 // 2 + 11).
    header[header.index(b"\x21\x01") + 2] = 37
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    return packed[:12] + bytes(header) + packed[12 + size :]


def with_large_window(text: bytes) -> bytes:
    """A file of zstd whose header asks for 2 GiB to read it."""
    block = (len(text) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\0" + bytes([(31 - 10) << 3]) + block + text


GREEDY = {
    "xz": with_large_dictionary(lzma.compress(b"text")),
    "two.xz": lzma.compress(b"text") + with_large_dictionary(lzma.compress(b"text")),
    "zst": with_large_window(b"text"),
}


@pytest.mark.parametrize("suffix", GREEDY)
def test_no_file_takes_the_memory_that_it_asks_for(tmp_path: Path, suffix: str, write) -> None:
    path = write(tmp_path / f"a.{suffix}", GREEDY[suffix])
    with pytest.raises(UserError, match=rf"cannot read '.*/a\.{suffix}': .* too much memory"):
        whole(path)


def test_what_compresses_best_is_read(tmp_path: Path, write) -> None:
    best = lzma.compress(b"text", preset=9 | lzma.PRESET_EXTREME)
    assert whole(write(tmp_path / "a.xz", best + bytes(8))) == "text"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_named_and_read(tmp_path: Path, encoding: str, write) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo".encode(encoding))
    with pytest.raises(UserError, match=rf"not UTF-8, but {encoding.upper()}\n.*: {encoding}\)"):
        list(Text(path).texts("train"))
    assert list(Text(path, encoding=encoding).texts("train")) == ["one\ntwo"]
    rows = write(tmp_path / "a.jsonl", '{"text": "naïve"}\r\n{"text": "two"}\r\n'.encode(encoding))
    with pytest.raises(UserError, match=f"but {encoding.upper()}"):
        JsonLines(rows).check()
    assert list(JsonLines(rows, encoding=encoding).texts("train")) == ["naïve", "two"]


def test_a_wrong_byte_is_named_with_its_line_and_a_guess(tmp_path: Path, write) -> None:
    path = write(tmp_path / "a.txt", b"one\ncaf\xe9 noir")
    with pytest.raises(
        UserError, match=r"a\.txt:2: not UTF-8: byte 0xe9 at offset 7; perhaps latin-1"
    ):
        list(Text(path).texts("train"))
    assert list(Text(path, encoding="latin-1").texts("train")) == ["one\ncafé noir"]
    path = write(tmp_path / "b.txt", b"\x93quoted\x94")
    with pytest.raises(UserError, match="perhaps windows-1252"):
        list(Text(path).texts("train"))
    # A letter that both have comes before a quote that only one has.
    path.write_bytes("café “quoted”".encode("windows-1252"))
    with pytest.raises(UserError, match="0xe9 at offset 3; perhaps windows-1252"):
        list(Text(path).texts("train"))
    path.write_bytes("“quoted”".encode("windows-1252"))
    assert list(Text(path, encoding="windows-1252").texts("train")) == ["“quoted”"]
    # Far behind, and with what is UTF-8 before it: damaged rather than of another encoding.
    path = write(tmp_path / "c.txt", "é\n".encode() * 50_000 + b"\xff")
    with pytest.raises(UserError, match=r"c\.txt:50001: not UTF-8: byte 0xff at offset 150000\n"):
        list(Text(path).texts("train"))
    with pytest.raises(UserError, match="not ASCII: byte 0xc3 at offset 0"):
        list(Text(path, encoding="ascii").texts("train"))
    with pytest.raises(
        UserError, match=r"d\.txt:1: not UTF-8: byte 0xc3 at offset 1; perhaps latin-1"
    ):
        list(Text(write(tmp_path / "d.txt", b"x\xc3")).texts("train"))


def test_other_files_are_called_what_they_are(tmp_path: Path, write) -> None:
    with pytest.raises(UserError, match="expected text, not a ZIP archive"):
        whole(write(tmp_path / "a.zip", b"PK\x03\x04..."))


@pytest.mark.parametrize("kind", [Text, JsonLines, Csv])
@pytest.mark.parametrize("encoding", ["utf-9", "hex", "", "a\0b"])
def test_unknown_encodings_are_refused(kind: type, encoding: str) -> None:
    with pytest.raises(ValueError, match=r"encoding .* is not known; expected one such as utf-8"):
        kind(Path("a"), encoding=encoding)


def test_windows_line_ends_are_unix_ones(tmp_path: Path, write) -> None:
    assert list(Text(write(tmp_path / "a.txt", "a\r\n\r\nb\r\n")).texts("test")) == ["a\n\nb\n"]
    rows = write(tmp_path / "a.jsonl", '{"text": "a\\r\\nb"}\r\n{"text": "c"}\r\n')
    assert list(JsonLines(rows).texts("test")) == ["a\nb", "c"]
    table = write(tmp_path / "a.csv", 'text,n\r\n"a\r\nb",1\r\nc,2\r\n')
    assert list(Csv(table).texts("test")) == ["a\nb", "c"]


def test_labels_leave_compression_out() -> None:
    assert label_of(Path("c4-train.00000-of-01024.json.gz")) == "c4-train.00000-of-01024"
