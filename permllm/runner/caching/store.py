"""A content-addressed cache of what stages compute, shared by runs, studies and processes.

An entry is a file named after its key (a hash of everything that it depends on, from
:mod:`permllm.runner.caching.keys`) and its content's own hash, such as
``statistics/<key>.<hash>.safetensors``. It is written under another name and renamed
once it is complete, so that several processes may share a folder; an entry whose
content does not match its name is damaged, and computed again.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import attrs
from safetensors import SafetensorError

GIGABYTE = 10**9

DEFAULT_LIMIT = 20 * GIGABYTE
"""Bytes of a cache, unless the user says otherwise."""

PARTIAL = ".partial"
"""Ends the names of files that are being written."""

ABANDONED_SECONDS = 24 * 3600
"""An unfinished file that is older was left by a process that was killed."""

_HASH_DIGITS = 16


@attrs.frozen
class Entry:
    """One file of a cache.

    Attributes:
        path: the file.
        bytes: its size.
        used: when it was last written or found, in seconds since 1970.
    """

    path: Path
    bytes: int
    used: float

    @property
    def kind(self) -> str:
        """What it holds, such as ``statistics``."""
        return self.path.parent.name


@attrs.define(eq=False)
class Cache:
    """A folder of entries.

    Attributes:
        folder: where; it is made when the first entry is written.
        limit: bytes that the entries may take; those that were not used for the longest
            time make room.
        warn: is told, in a sentence, what is damaged or cannot be written.
    """

    folder: Path
    limit: int = DEFAULT_LIMIT
    warn: Callable[[str], None] = lambda message: None
    _broken: bool = attrs.field(default=False, init=False)

    def find(self, kind: str, key: str) -> Path | None:
        """The complete, undamaged entry of a key, which now counts as used; None without one."""
        for path in sorted((self.folder / kind).glob(f"{key}.*")):
            if path.name.endswith(PARTIAL):
                continue
            try:
                if is_whole(path):
                    os.utime(path)
                    return path
                self.warn(f"the cache entry {path} is damaged: its content is computed again")
                path.unlink(missing_ok=True)
            except OSError:
                # Another process made room, or the entry cannot be read: as if not there.
                continue
        return None

    def put(self, kind: str, key: str, suffix: str, write: Callable[[Path], None]) -> Path | None:
        """Write an entry; None where that fails, which is a warning, once.

        Args:
            kind: what it holds; the name of a folder.
            key: a hash of all that it depends on.
            suffix: of the file, such as ``.json``.
            write: writes the content to the path that it gets.
        """
        if self._broken:
            return None
        folder = self.folder / kind
        unfinished = folder / f"{key}.{uuid.uuid4().hex}{PARTIAL}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(unfinished)
            path = folder / f"{key}.{content_hash(unfinished)}{suffix}"
            unfinished.replace(path)
        except (OSError, SafetensorError) as error:
            self._broken = True
            self.warn(f"the cache {self.folder} cannot be written, and is not used: {error}")
            return None
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
        self.make_room(self.limit, keep=path)
        return path

    def entries(self) -> list[Entry]:
        """All complete entries, the least recently used first."""
        return sorted(self._entries(), key=lambda entry: entry.used)

    def make_room(self, limit: int, keep: Path | None = None) -> list[Entry]:
        """Remove the least recently used entries until the rest takes ``limit`` bytes at most.

        Args:
            limit: bytes.
            keep: an entry that stays in any case.

        Returns:
            what was removed.
        """
        entries = self.entries()
        total = sum(entry.bytes for entry in entries)
        removed = []
        for entry in entries:
            if total <= limit:
                break
            if entry.path != keep:
                entry.path.unlink(missing_ok=True)
                removed.append(entry)
                total -= entry.bytes
        return removed

    def sweep(self) -> int:
        """Remove what killed processes left unfinished; how many files that were."""
        before = time.time() - ABANDONED_SECONDS
        abandoned = [
            path
            for path in self.folder.glob(f"*/*{PARTIAL}")
            if path.exists() and path.stat().st_mtime < before
        ]
        for path in abandoned:
            path.unlink(missing_ok=True)
        return len(abandoned)

    def damaged(self) -> Iterator[tuple[Entry, bool]]:
        """Every entry, and whether its content differs from what was written."""
        for entry in self.entries():
            yield entry, not is_whole(entry.path)

    def _entries(self) -> Iterator[Entry]:
        for path in self.folder.glob("*/*"):
            if path.name.endswith(PARTIAL) or _named_hash(path) is None:
                continue
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            yield Entry(path, status.st_size, status.st_mtime)


def content_hash(path: Path) -> str:
    """The first digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_HASH_DIGITS]


def is_whole(path: Path) -> bool:
    """Whether an entry's content is the one that its name promises."""
    return _named_hash(path) == content_hash(path)


def _named_hash(path: Path) -> str | None:
    parts = path.name.split(".")
    return parts[1] if len(parts) == 3 and len(parts[1]) == _HASH_DIGITS else None
