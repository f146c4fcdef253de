"""Files that are there as a whole or not at all, and JSON that is read with suspicion.

What is written goes into a folder of its own beside the place where it is to stand, under a
name that nobody has, and moves there once it is complete and on the disk. So nothing is ever
half there, nobody can lay a link where something will be written, and what libraries leave
when they are killed lies in that folder, too. The folder's name says whose it is; the next
writer removes those of dead ones.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

from permllm.errors import UserError
from permllm.redaction import redacted

T = TypeVar("T")

LARGEST_JSON = 2**28
"""Bytes of the largest JSON file that is read; larger ones are surely something else."""

DEEPEST = 64
"""Lists and mappings within one another that a JSON file may have."""

LONGEST_NUMBER = 64
"""Digits of a whole number in a JSON file."""

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes of the longest name of a file, and of the longest path, that file systems have."""

SEAL = "sha256"
"""The key under which a sealed JSON file holds the hash of all else in it."""

ABANDONED_SECONDS = 24 * 3600
"""What another machine left unfinished is given up after this time."""

_OWN: set[str] = set()
"""Names of folders that this process writes in now; others with its id are those of a dead one."""

_WORKPLACE = re.compile(r"\.permllm-(?P<host>[\w-]{1,63})-(?P<pid>\d{1,10})-\w{8}\.partial")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file to, which takes the place of ``path`` if the block ends well.

    File and name are on the disk then.

    Args:
        path: where the file is to stand; its folder is made.

    Raises:
        OSError: that fails; what was at ``path`` stays.
    """
    with workplace(path.parent) as folder:
        yield folder / path.name
        _flush(folder / path.name)
        (folder / path.name).replace(path)
        _flush(path.parent)


@contextmanager
def completing(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``path`` if the block ends well.

    Raises:
        OSError: that fails, such as since something stands at ``path`` by now.
    """
    with workplace(path.parent) as folder:
        work = folder / path.name
        work.mkdir()
        yield work
        for inside in work.rglob("*"):
            _flush(inside)
        work.rename(path)
        _flush(path.parent)


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A new folder within another for the block, where this process writes in peace.

    Args:
        folder: where; it is made, and what dead writers left there goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    prefix = f".permllm-{_host()}-{os.getpid()}-"
    work = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=folder))
    _OWN.add(work.name)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        _OWN.discard(work.name)


def is_unfinished(path: Path) -> bool:
    """Whether a name is one under which something is being written."""
    return _WORKPLACE.fullmatch(path.name) is not None


def sweep(folder: Path, *, deep: bool = False) -> int:
    """Remove what dead writers left unfinished; how much that was.

    Args:
        folder: where.
        deep: in its subfolders, too.
    """
    unfinished = folder.glob(f"{'**/' if deep else ''}.permllm-*.partial")
    abandoned = [path for path in unfinished if _is_abandoned(path)]
    for path in abandoned:
        shutil.rmtree(path, ignore_errors=True)
    return len(abandoned)


def lives(pid: int) -> bool:
    """Whether another process of this machine has an id; one that has ended has none."""
    try:
        # In a container every start may get the same id, and nobody ask how a process ended.
        return pid != os.getpid() and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def write_text(path: Path, text: str) -> None:
    """Write a text file, and the folders it stands in, at once whole.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as JSON in the same way."""
    write_text(path, as_json(data))


def write_sealed(path: Path, data: dict[str, Any]) -> None:
    """Write a mapping as JSON, with the hash by which :func:`read_sealed` knows it again."""
    # Secrets are left out of what is written, and so of what is hashed.
    write_json(path, sealed(redacted(data)))


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """A mapping with the hash of what it holds."""
    return data | {SEAL: _content_hash(data)}


def read_sealed(path: Path, *, older: bool = False) -> dict[str, Any]:
    """The mapping in a file of :func:`write_sealed`, without its hash.

    Args:
        path: the file.
        older: versions of permllm that did not seal may have written it.

    Raises:
        UserError: it cannot be read, or is not what was written.
    """
    return unsealed(read_json(path), str(path), older=older)


def read_record(path: Path, cls: type[T], *, older: bool = False) -> T:
    """A value of an attrs class, from a file of :func:`write_sealed`.

    Args:
        path: the file.
        cls: the class; keys that it does not know are left aside, and no type is changed.
        older: as for :func:`read_sealed`.

    Raises:
        UserError: as for :func:`read_sealed`, or something in it has another type.
    """
    return converted(read_sealed(path, older=older), cls, str(path))


def converted(data: Any, cls: type[T], name: str) -> T:
    """A value of an attrs class, from plain data of a file of this name; types stay.

    Raises:
        UserError: something in it has another type; with its place.
    """
    try:
        return msgspec.convert(data, cls)
    except (msgspec.ValidationError, OverflowError, ValueError, TypeError) as error:
        raise UserError(f"this is damaged: {_in_words(str(error))}", file=name) from error


def unsealed(data: Any, name: str, *, older: bool = False) -> dict[str, Any]:
    """Sealed plain data without its hash.

    Raises:
        UserError: it is not what was sealed.
    """
    whole = isinstance(data, dict) and (is_intact(data) or (older and SEAL not in data))
    if not whole:
        raise UserError("this is damaged: it is not what was written", file=name)
    return {key: value for key, value in data.items() if key != SEAL}


def is_intact(data: dict[str, Any]) -> bool:
    """Whether a mapping has the hash of what else it holds."""
    rest = {key: value for key, value in data.items() if key != SEAL}
    return data.get(SEAL) == _content_hash(rest)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file, read strictly.

    Size, depth and the digits of numbers have limits, and a key may be there once.

    Raises:
        UserError: it cannot be read, or is no such mapping; with its place.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise UserError(f"{size} bytes are too many for this file", file=str(path))
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"this is not UTF-8 text: {error.reason}", file=str(path)) from error
    except OSError as error:
        raise UserError(f"this cannot be read: {error.strerror}", file=str(path)) from error
    data = parse_json(text, str(path))
    if not isinstance(data, dict):
        raise UserError("this is no JSON object", file=str(path))
    return data


def _is_text(data: Any) -> bool:
    """Whether all texts in plain data can be written; an escape may be half of a character."""
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str, name: str) -> Any:
    """The data of JSON text, read strictly.

    Args:
        text: the text.
        name: of its file, for errors.

    Raises:
        UserError: it is no JSON, or goes beyond the limits.
    """
    try:
        data = json.loads(text, parse_int=_whole_number, object_pairs_hook=_mapping)
    except json.JSONDecodeError as error:
        raise UserError(
            f"this is no JSON: {error.msg}", file=name, line=error.lineno, column=error.colno
        ) from error
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"this is no JSON that permllm reads: {why}", file=name) from error
    if "\\u" in text and not _is_text(data):
        raise UserError(
            "this is no JSON that permllm reads: it has halves of characters", file=name
        )
    if _depth(data) > DEEPEST:
        raise UserError(
            f"this is no JSON that permllm reads: more than {DEEPEST} lists and mappings stand "
            "within one another",
            file=name,
        )
    return data


def as_json(data: Any) -> str:
    """What :func:`write_json` writes, without secrets."""
    return json.dumps(redacted(data), indent=2, ensure_ascii=False) + "\n"


def holds(path: Path, data: Any) -> bool:
    """Whether a file holds just what :func:`write_json` would write there."""
    return path.is_file() and path.read_bytes() == as_json(data).encode()


def can_exist(path: Path) -> bool:
    """Whether a file may have this path; what looks for any other meets errors of the system."""
    try:
        names = [os.fsencode(part) for part in path.parts]
    except UnicodeEncodeError:
        return False
    longest = max(map(len, names), default=0)
    return longest <= LONGEST_NAME and len(os.fsencode(path)) <= LONGEST_PATH


def file_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by its path within, subfolders included."""
    return {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _is_abandoned(path: Path) -> bool:
    """Whether the process that wrote here is dead."""
    name = _WORKPLACE.fullmatch(path.name)
    if name is None or path.is_symlink() or not path.is_dir():
        return False
    if name["host"] == _host():
        return path.name not in _OWN and not lives(int(name["pid"]))
    with suppress(OSError):
        return path.stat().st_mtime < time.time() - ABANDONED_SECONDS
    return False


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())[:63] or "host"


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot, for folders above all; a full disk is another matter.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _in_words(message: str) -> str:
    """``Expected `str`, got `int` - at `$.runs[0].label`` as ``runs[0].label: …``."""
    what, _, place = message.partition(" - at ")
    where = place.strip("`").removeprefix("$").removeprefix(".")
    what = what.replace("`", "'")
    what = what[:1].lower() + what[1:]
    return f"{where}: {what}" if where else what


def _content_hash(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _whole_number(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice[:60]!r} stands there twice")
    return data


def _depth(data: Any) -> int:
    """How many lists and mappings stand within one another."""
    depth, level = 0, [data]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
    return depth
