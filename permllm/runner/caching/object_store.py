"""A store behind a cache's folder, for machines that share no folder: an object store, say.

Whatever a URL of fsspec names can be one, such as ``s3://bucket/prefix``. An entry is two objects:
its content, under the name that it has in a folder, and after it ``<kind>/<key>``, which holds that
name. What is not named so was not finished, and what has another hash than its name promises is
damaged: neither is ever used. Leases are objects, too, made where there is none yet; nothing else
is ever removed, since it is the store's own rules that say how long something stays.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import fsspec

from permllm.commands import pip_install
from permllm.errors import UserError
from permllm.redaction import redacted
from permllm.runner.caching.leases import LEASES, Sign

ANSWERING_SECONDS = 60.0
"""So long a store has time to show that it can be used."""

LONGEST_OBJECT = 2**12
"""Bytes that are read of a lease, or of what names a content."""

_URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]*)://(?!.*::).+")

_LOCAL = ("file", "local")
"""Protocols of file systems in which a folder has to be there before a file is."""


class StoreError(OSError):
    """A store did not do what it was asked to."""


@attrs.define(eq=False)
class ObjectStore:
    """Entries and leases in a file system of fsspec.

    It also is a :class:`permllm.runner.caching.leases.LeasePlace`. After the first error nothing
    is asked any more: its package has tried again by then, and runs can do without.

    Attributes:
        url: where; it holds no secrets.
        files: the file system.
        root: the path in that.
    """

    url: str
    files: Any
    root: str
    _lost: str | None = None

    @classmethod
    def at(cls, url: str) -> ObjectStore:
        """The store that a URL names.

        Raises:
            UserError: it is no URL of one, it holds secrets, or a package is missing.
        """
        if redacted(url) != url:
            raise UserError(
                f"--cache {redacted(url)}: a URL with a user, a password or a token in it is shown "
                "and written to files",
                hint="have them where the protocol's package looks for them: for s3, "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws",
            )
        match = _URL.fullmatch(url)
        protocol = match["protocol"] if match else ""
        if protocol not in fsspec.available_protocols():
            raise UserError(
                f"--cache {url}: this is no URL of a store",
                hint="such as s3://BUCKET/PREFIX; a folder is named by its path",
            )
        options = {"auto_mkdir": True} if protocol in _LOCAL else {}
        try:
            files, root = fsspec.url_to_fs(url, use_listings_cache=False, **options)
        except ImportError as error:
            needs = getattr(error.__cause__, "name", None) or protocol
            raise UserError(
                f"--cache {url} needs {needs}, which is missing", hint=pip_install(needs)
            ) from error
        except Exception as error:
            raise UserError(f"--cache {url}: {_said(error)}") from error
        return cls(url, files, root.rstrip("/"))

    def __str__(self) -> str:
        return self.url

    def check(self, patience: float = ANSWERING_SECONDS) -> None:
        """Try whether it does all that it will be asked to do.

        Args:
            patience: seconds within which it has to.

        Raises:
            UserError: it does not, or not in time.
        """
        failed: list[StoreError] = []

        def try_out() -> None:
            try:
                self._try_out(f"probe-{secrets.token_hex(8)}.lease")
            except StoreError as error:
                failed.append(error)

        # Packages that wait for an address may do so for minutes.
        trying = threading.Thread(target=try_out, name=f"trying {self.url}", daemon=True)
        trying.start()
        trying.join(patience)
        if trying.is_alive():
            raise UserError(f"--cache {self.url}: no answer within {patience:g} seconds")
        if failed:
            raise UserError(
                f"--cache {self.url}: {failed[0]}",
                hint="it needs to be there, with the right to read, write and remove in it",
            )

    def _try_out(self, name: str) -> None:
        content = secrets.token_bytes(16)
        with self._asking(f"reading {LEASES}/{name}"):
            if self._read(self._lease(name)) is not None:
                raise StoreError("it holds what nobody has written")
        self.create(name, content)
        try:
            self.create(name, content)
        except FileExistsError:
            pass
        else:
            raise StoreError("it does not refuse to make anew what is there")
        with self._asking(f"reading {LEASES}/{name}"):
            if self._read(self._lease(name)) != content:
                raise StoreError("it does not hold what was written just now")
        self.remove(name)

    def name_of(self, kind: str, key: str) -> str | None:
        """The name of an entry's content; None where there is no finished one.

        Raises:
            StoreError: nobody can tell.
        """
        with self._asking(f"reading {kind}/{key}"):
            content = self._read(f"{self.root}/{kind}/{key}")
        return None if content is None else content.decode("ascii", "replace")

    def get(self, kind: str, name: str, path: Path) -> bool:
        """Write the content of a name to a file; False where it is gone.

        Raises:
            StoreError: it cannot be read.
        """
        with self._asking(f"reading {kind}/{name}"):
            try:
                self.files.get_file(f"{self.root}/{kind}/{name}", str(path))
            except FileNotFoundError:
                return False
        return True

    def put(self, kind: str, key: str, path: Path) -> None:
        """Keep an entry: first its content, and then its name.

        Raises:
            StoreError: it cannot be written.
        """
        with self._asking(f"writing {kind}/{path.name}"):
            self.files.put_file(str(path), f"{self.root}/{kind}/{path.name}")
            self.files.pipe_file(f"{self.root}/{kind}/{key}", path.name.encode())

    def sizes(self) -> dict[str, tuple[int, int]]:
        """How many contents there are of each kind, and the bytes that they take.

        Raises:
            StoreError: nobody can tell.
        """
        found: dict[str, tuple[int, int]] = {}
        with self._asking("listing it"):
            for path, facts in self.files.find(self.root, detail=True).items():
                kind, _, name = path.removeprefix(f"{self.root}/").partition("/")
                # What names a content has no suffix.
                if kind != LEASES and "." in name:
                    count, size = found.get(kind, (0, 0))
                    found[kind] = count + 1, size + facts["size"]
        return found

    def create(self, name: str, content: bytes) -> None:
        """Make a lease; see :class:`permllm.runner.caching.leases.LeasePlace` for all methods."""
        with self._asking(f"writing {LEASES}/{name}"):
            try:
                if self.files.protocol == _LOCAL:
                    self.files.makedirs(self._lease(""), exist_ok=True)
                with self.files.open(self._lease(name), "xb") as file:
                    file.write(content)
            except FileExistsError:
                raise
            except Exception as error:
                # Not all that refuse to write say so by that class.
                if self._read(self._lease(name)) is None:
                    raise
                raise FileExistsError(name) from error

    def read(self, name: str) -> Sign | None:
        """The owner's words are in the first line; the second is another after each touch."""
        with suppress(StoreError), self._asking(f"reading {LEASES}/{name}"):
            content = self._read(self._lease(name))
            if content is not None:
                owner, _, touched = content.partition(b"\n")
                return owner, touched
        return None

    def touch(self, name: str, content: bytes) -> None:
        """Write it anew."""
        with self._asking(f"writing {LEASES}/{name}"):
            touched = str(time.time_ns()).encode()
            self.files.pipe_file(self._lease(name), content + b"\n" + touched)

    def remove(self, name: str) -> None:
        """Remove a lease."""
        with self._asking(f"removing {LEASES}/{name}"), suppress(FileNotFoundError):
            self.files.rm_file(self._lease(name))

    def take_away(self, name: str, content: bytes) -> None:
        """Remove it if it is that one still; between the two, few others fit."""
        sign = self.read(name)
        if sign is not None and sign[0] == content:
            self.remove(name)

    def sweep(self) -> int:
        """Leave all: whoever wants what a dead owner has a lease on takes it away."""
        return 0

    def _lease(self, name: str) -> str:
        return f"{self.root}/{LEASES}/{name}"

    def _read(self, path: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return bytes(self.files.cat_file(path)[:LONGEST_OBJECT])
        return None

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Have errors of all packages be one.

        Raises:
            StoreError: the block fails, or one before it did.
        """
        if self._lost is not None:
            raise StoreError(self._lost)
        try:
            yield
        except FileExistsError:
            raise
        except Exception as error:
            self._lost = str(error) if isinstance(error, StoreError) else f"{what}: {_said(error)}"
            raise StoreError(self._lost) from error


def place_of_cache(named: str | Path | None) -> Path | ObjectStore | None:
    """A folder, or a store where a URL is named.

    Raises:
        UserError: as for :meth:`ObjectStore.at`.
    """
    if isinstance(named, str) and "://" in named:
        return ObjectStore.at(named)
    return None if named is None else Path(named)


def _said(error: Exception) -> str:
    """What an error of whichever package says, in a line."""
    first = redacted(str(error).strip().partition("\n")[0])
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
