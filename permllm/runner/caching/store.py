"""A content-addressed cache of what stages compute, shared by runs, studies and processes.

An entry is a file named after its key (a hash of everything that it depends on, from
:mod:`permllm.runner.caching.keys`) and its content's own hash, such as
``statistics/<key>.<hash>.safetensors``. It takes its place once it is complete, so that
several processes may share a folder; an entry whose content does not match its name is
damaged, and computed again.

Behind the folder there may be a store that machines share which share no folder. What is written
goes there, too, and what the folder has not is looked for there.

A cache's folder has a mark. Only files of known kinds with such names in a folder that has it
are entries, and ever removed: whatever else lies there is somebody's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
from safetensors import SafetensorError
from xxhash import xxh3_64

from permllm.errors import UserError
from permllm.files import is_unfinished, sweep, workplace, write_text
from permllm.runner.caching.leases import LEASES, LeaseFolder, Leases
from permllm.runner.caching.object_store import ObjectStore, StoreError

GIGABYTE = 10**9

DEFAULT_LIMIT = 20 * GIGABYTE
"""Bytes of a cache, unless the user says otherwise."""

STATES = "states"
"""The kind of entry that takes much room for the time that it saves."""

KINDS = ("figures", "permutations", "states", "statistics", "tokens", "windows")
"""What a cache may hold; each kind has a folder."""

MARK = "CACHEDIR.TAG"
"""The file that says of a folder that it is a cache; backups leave out folders that have it."""

MARKED = """\
Signature: 8a477f597d28d172789f06886806bc55
# What stages of permllm computed. `permllm cache prune` makes room here.
"""

_HASH_DIGITS = 16

_NAME = re.compile(rf"[0-9a-f]{{64}}\.(?P<hash>[0-9a-f]{{{_HASH_DIGITS}}})\.(safetensors|json)")


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
        limit: bytes that the entries may take. Hidden states make room first, which are large
            and soon made again, and then what was not used for the longest time.
        warn: is told, in a sentence, what is damaged or cannot be written.
        store: where else entries are; None for nowhere.
        leases: who computes which entry now; in the store where there is one.
    """

    folder: Path
    limit: int = DEFAULT_LIMIT
    warn: Callable[[str], None] = lambda message: None
    store: ObjectStore | None = None
    leases: Leases = attrs.Factory(
        lambda self: Leases(self.store or LeaseFolder(self.folder / LEASES)), takes_self=True
    )
    _broken: bool = attrs.field(default=False, init=False)
    _stuck: bool = attrs.field(default=False, init=False)

    @classmethod
    def at(
        cls,
        place: Path | ObjectStore | None,
        own: Path,
        limit: int = DEFAULT_LIMIT,
        warn: Callable[[str], None] = lambda message: None,
    ) -> Cache:
        """The cache that somebody names.

        Args:
            place: its folder, or the store behind the folder ``own``; None is that alone.
            own: the folder where none is named.
            limit, warn: as the attributes.
        """
        store = place if isinstance(place, ObjectStore) else None
        return cls(place if isinstance(place, Path) else own, limit, warn, store)

    def check(self) -> None:
        """Refuse a folder that holds something else.

        Raises:
            UserError: it does.
        """
        try:
            # One that was killed when it began a cache has left no mark.
            inside = (path for path in self.folder.iterdir() if not is_unfinished(path))
            other = not self.is_cache() and any(inside)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.folder} cannot be a cache: {error.strerror}") from error
        if other:
            raise UserError(
                f"{self.folder} holds files and is no cache of permllm",
                hint="name a new or an empty folder with --cache",
            )

    def is_cache(self) -> bool:
        """Whether the folder has the mark of a cache."""
        try:
            return (self.folder / MARK).read_text(encoding="utf-8") == MARKED
        except (OSError, UnicodeDecodeError):
            return False

    def find(self, kind: str, key: str) -> Path | None:
        """The complete, undamaged entry of a key, which now counts as used; None without one."""
        return self._own(kind, key) or self._copied(kind, key)

    def _own(self, kind: str, key: str) -> Path | None:
        """That in the folder."""
        for path in sorted((self.folder / kind).glob(f"{key}.*")):
            if _NAME.fullmatch(path.name) is None:
                continue
            try:
                if is_whole(path):
                    os.utime(path)
                    return path
                self.warn(f"the cache entry {path} is damaged: its content is computed again")
            except OSError:
                # Another process made room, or the entry cannot be read: as if not there.
                continue
            self._remove(path)
        return None

    def _copied(self, kind: str, key: str) -> Path | None:
        """That in the store, copied into the folder."""
        if self.store is None or not self.opened():
            return None
        folder = self.folder / kind
        try:
            name = self.store.name_of(kind, key)
            if name is None:
                return None
            with workplace(folder) as work:
                # Its name comes from elsewhere, and is to be a path within the cache.
                named = _NAME.fullmatch(name) is not None and name.startswith(key)
                if named and not self.store.get(kind, name, work / name):
                    return None
                if not (named and is_whole(work / name)):
                    self.warn(
                        f"the cache entry {self.store}/{kind}/{key} is damaged: its content is "
                        "computed again"
                    )
                    return None
                path = (work / name).replace(folder / name)
        except StoreError as error:
            self._leave_store(error)
            return None
        except OSError as error:
            self._give_up(error)
            return None
        self.make_room(self.limit, keep=path)
        return path

    def reject(self, path: Path, why: str) -> None:
        """Remove an entry whose content nobody can make anything of, and say so.

        Args:
            path: the entry.
            why: what is wrong with it.
        """
        self.warn(f"the cache entry {path} is damaged ({why}): its content is computed again")
        self._remove(path)

    def put(self, kind: str, key: str, suffix: str, write: Callable[[Path], None]) -> Path | None:
        """Write an entry; None where that fails, which is a warning, once.

        Args:
            kind: what it holds; the name of a folder.
            key: a hash of all that it depends on.
            suffix: of the file, such as ``.json``.
            write: writes the content to the path that it gets.
        """
        if not self.opened():
            return None
        folder = self.folder / kind
        try:
            with workplace(folder) as work:
                unfinished = work / f"content{suffix}"
                write(unfinished)
                # Not flushed: what goes with the power is noticed, and computed again.
                path = folder / f"{key}.{content_hash(unfinished)}{suffix}"
                unfinished.replace(path)
        except (OSError, SafetensorError) as error:
            self._give_up(error)
            return None
        if self.store is not None:
            try:
                self.store.put(kind, key, path)
            except StoreError as error:
                self._leave_store(error)
        self.make_room(self.limit, keep=path)
        return path

    def opened(self) -> bool:
        """Whether the folder is a cache by now; if it cannot be one, that is a warning, once."""
        if self._broken:
            return False
        try:
            self.check()
            if not self.is_cache():
                write_text(self.folder / MARK, MARKED)
        except (OSError, UserError) as error:
            self._give_up(error)
        return not self._broken

    def entries(self) -> list[Entry]:
        """All complete entries, the least recently used first."""
        return sorted(self._entries(), key=lambda entry: entry.used)

    def make_room(self, limit: int, keep: Path | None = None) -> list[Entry]:
        """Remove entries until the rest takes ``limit`` bytes at most.

        Hidden states first, and of one sort the least recently used.

        Args:
            limit: bytes.
            keep: an entry that stays in any case.

        Returns:
            what was removed.
        """
        entries = sorted(self.entries(), key=lambda entry: entry.kind != STATES)
        total = sum(entry.bytes for entry in entries)
        removed = []
        for entry in entries:
            if total <= limit:
                break
            if entry.path != keep and self._remove(entry.path):
                removed.append(entry)
                total -= entry.bytes
        return removed

    def sweep(self) -> int:
        """Remove what killed processes left, unfinished or taken; how many files that were."""
        if not self.is_cache():
            return 0
        unfinished = sweep(self.folder) + sum(sweep(self.folder / kind) for kind in KINDS)
        return unfinished + self.leases.place.sweep()

    def damaged(self) -> Iterator[tuple[Entry, bool]]:
        """Every entry, and whether its content differs from what was written."""
        for entry in self.entries():
            yield entry, not is_whole(entry.path)

    def _entries(self) -> Iterator[Entry]:
        if not self.is_cache():
            return
        for path in (path for kind in KINDS for path in (self.folder / kind).glob("*")):
            if _NAME.fullmatch(path.name) is None:
                continue
            try:
                status = path.lstat()
            except OSError:
                continue
            yield Entry(path, status.st_size, status.st_mtime)

    def _remove(self, path: Path) -> bool:
        """Whether an entry is gone now; one that cannot be removed does no harm."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if not self._stuck:
                self.warn(f"the cache entry {path} cannot be removed: {error.strerror}")
            self._stuck = True
            return False
        return True

    def _leave_store(self, error: StoreError) -> None:
        self.warn(f"the cache {self.store} cannot be used any more, and is left alone: {error}")
        self.store = None

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        self.warn(f"the cache {self.folder} cannot be written, and is not used: {error}")


def content_hash(path: Path) -> str:
    """The XXH3 of a file.

    It tells damage and not malice: whoever can change an entry can rename it as well. To hash
    safely would take half a percent of a run.
    """
    content = xxh3_64()
    with path.open("rb") as file:
        while block := file.read(2**20):
            content.update(block)
    return content.hexdigest()


def is_whole(path: Path) -> bool:
    """Whether an entry's content is the one that its name promises."""
    name = _NAME.fullmatch(path.name)
    return name is not None and name["hash"] == content_hash(path)
