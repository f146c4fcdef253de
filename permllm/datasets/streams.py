"""Text files that a user named, compressed or not, in any encoding: read as streams."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from permllm.datasets.xz import MAGIC, XzFile
from permllm.errors import UserError

LONGEST_LINE = 2**25
"""Characters of the longest line, or value of a JSON array, that is read."""

LARGEST_UNPACKED = 2**28
"""Characters of the largest compressed file that is read as one document."""

CHUNK = 2**16


def _zstd(path: Path) -> Any:
    # Late: pyarrow, which comes with datasets, takes long to import.
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    MAGIC: XzFile,
    b"\x28\xb5\x2f\xfd": _zstd,
}
"""What opens a compressed file, by its first bytes: names say less."""

WANTS_MEMORY = ("Memory usage limit exceeded", "requires too much memory")
"""What xz and zstd say of files that are read in hundreds of megabytes, or more."""

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
"""What compression adds to a file's name."""

OTHERS = {b"PK\x03\x04": "a ZIP archive", b"PAR1": "a Parquet file", b"%PDF": "a PDF document"}
"""What is no text, by its first bytes."""

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def check_encoding(encoding: str) -> None:
    """Refuse what is not the name of an encoding.

    Raises:
        ValueError: Python has no encoding of that name.
    """
    try:
        "".encode(encoding)
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"encoding {encoding!r} is not known; expected one such as utf-8, latin-1 or utf-16"
        ) from error


def uncompressed_name(path: Path) -> Path:
    """A path without what compression added to its name: ``c4.json`` for ``c4.json.gz``."""
    return path.with_suffix("") if path.suffix in SUFFIXES else path


def whole(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file.

    Raises:
        UserError: it cannot be read, is in another encoding, or compressed and too large.
    """
    limited, parts, size = _opener(path) is not None, [], 0
    for chunk in chunks(path, encoding):
        parts.append(chunk)
        size += len(chunk)
        if limited and size > LARGEST_UNPACKED:
            raise UserError(
                f"more than {LARGEST_UNPACKED:,} characters are in this compressed file, which "
                "is read as one document",
                file=str(path),
                hint="decompress it, or put its documents into JSON lines",
            )
    return "".join(parts)


def lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, each with its end.

    Raises:
        UserError: the file cannot be read or is in another encoding, or a line is too long.
    """
    number, rest = 1, ""
    for chunk in chunks(path, encoding):
        *complete, rest = (rest + chunk).split("\n")
        for line in complete:
            yield number, f"{line}\n"
            number += 1
        check_length(rest, path, number)
    if rest:
        yield number, rest


def check_length(text: str, path: Path, line: int) -> None:
    """Refuse a line, or a value, of more characters than are read."""
    if len(text) > LONGEST_LINE:
        raise UserError(
            f"more than {LONGEST_LINE:,} characters stand in one line or value",
            file=str(path),
            line=line,
            hint="documents of that length are better files of their own: dataset 'text'",
        )


def chunks(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The text of a file, piece by piece, decompressed no further than it is asked for.

    Raises:
        UserError: it cannot be read, or is in another encoding.
    """
    try:
        with _data(path) as data:
            _check_kind(path, data.peek(64)[:64], encoding)
            # Other line ends stay as they are: they may stand within a text of JSON or CSV.
            with io.TextIOWrapper(data, encoding=encoding, newline="\n") as text:
                first = True
                while chunk := text.read(CHUNK):
                    yield chunk.removeprefix("\ufeff") if first else chunk
                    first = False
    except UnicodeError as error:
        raise _wrong_byte(path, encoding) or _cannot_read(path, error) from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise _cannot_read(path, error) from error


def _opener(path: Path) -> Callable[[Path], Any] | None:
    """What decompresses a file, or None."""
    with path.open("rb") as file:
        head = file.read(16)
    # A text may begin with the letters BZh; what follows them in bzip2 is a digit and pi.
    if head.startswith(b"BZh") and head[4:10] not in (b"1AY&SY", b"\x17rE8P\x90"):
        return None
    return next((opener for magic, opener in COMPRESSED.items() if head.startswith(magic)), None)


def _data(path: Path) -> io.BufferedReader:
    """The bytes of a file, decompressed."""
    opener = _opener(path)
    return io.BufferedReader(opener(path) if opener else path.open("rb", buffering=0), CHUNK)


def _check_kind(path: Path, head: bytes, encoding: str) -> None:
    """Refuse what its first bytes show to be no text, or in another encoding.

    Text in UTF-16 may be valid UTF-8, too, full of zeros.
    """
    for magic, kind in OTHERS.items():
        if head.startswith(magic):
            raise UserError(f"expected text, not {kind}", file=str(path))
    wide = _wide(head)
    if wide and codecs.lookup(encoding).name in ("utf-8", "ascii", "iso8859-1", "cp1252"):
        raise _other_encoding(path, f"not {encoding.upper()}, but {wide.upper()}", wide)


def _wide(head: bytes) -> str | None:
    """The encoding of two or four bytes a character that a file is in."""
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    if len(head) >= 4 and not any(head[1::2]):
        return "utf-16-le"
    return "utf-16-be" if len(head) >= 4 and not any(head[::2]) else None


def _wrong_byte(path: Path, encoding: str) -> UserError | None:
    """The error that names the first byte that an encoding has no meaning for."""
    decoder = codecs.getincrementaldecoder(encoding)()
    offset, line = 0, 1
    with _data(path) as data:
        while True:
            chunk = data.read(CHUNK)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                before = error.object[: error.start]
                # The decoder may have kept the beginning of a character.
                offset += len(chunk) - len(error.object) + error.start
                byte = error.object[error.start]
                # Of the two, only one has letters and quotes where the other has controls.
                rest = (error.object[error.start :], *iter(partial(data.read, CHUNK), b""))
                controls = any(0x80 <= one < 0xA0 for part in rest for one in part)
                guess = "windows-1252" if controls else "latin-1"
                what = f"not {encoding.upper()}: byte {byte:#04x} at offset {offset}"
                line += chunk.count(b"\n", 0, max(0, len(chunk) - len(error.object) + error.start))
                if codecs.lookup(encoding).name == "utf-8" and before.isascii():
                    return _other_encoding(path, f"{what}; perhaps {guess}", guess, line)
                return _other_encoding(path, what, "…", line)
            if not chunk:
                return None
            offset, line = offset + len(chunk), line + chunk.count(b"\n")


def _other_encoding(path: Path, what: str, encoding: str, line: int | None = None) -> UserError:
    return UserError(
        what,
        file=str(path),
        line=line,
        hint=f"give the dataset its encoding (encoding: {encoding}), or convert the file to UTF-8",
    )


def _cannot_read(path: Path, error: Exception) -> UserError:
    if any(words in str(error) for words in WANTS_MEMORY):
        return UserError(
            f"cannot read '{path}': it is compressed so that reading it takes too much memory",
            hint="compress it again, without --long and with no larger dictionary than xz -9 takes",
        )
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or "it is damaged"
    return UserError(f"cannot read '{path}': {reason}")
