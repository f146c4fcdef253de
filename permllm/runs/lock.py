"""A run's folder belongs to one process at a time."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import attrs
from filelock import FileLock, Timeout

from permllm.errors import UserError
from permllm.files import lives, read_record, sweep, write_sealed

LOCK, OWNER = ".lock", ".owner.json"
"""Files in a run's folder: what the operating system locks, and who holds it."""

NAMING_SECONDS = 2.0
"""Who has just got a folder has this time to say so."""


@attrs.frozen
class Owner:
    """Who works in a run's folder.

    Attributes:
        host, pid: the process.
        since: when it began.
    """

    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"

    @classmethod
    def me(cls) -> Owner:
        """This process, as of now."""
        return cls(socket.gethostname(), os.getpid(), f"{datetime.now():%Y-%m-%d %H:%M:%S}")


@contextmanager
def owned(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Have a folder for oneself for the block.

    The lock is the operating system's, so that it ends with the process that holds it, however
    that ends. What dead processes left unfinished anywhere in the folder goes first.

    Args:
        folder: the folder, which is there.
        warn: is told of an owner that died, and of a file system without locks.

    Raises:
        UserError: another process has it.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        whose = _living_owner(folder)
        raise UserError(
            f"the folder {folder} is in use by {whose or 'another process'}",
            hint="wait for its end, or choose another --out",
        ) from None
    except (OSError, NotImplementedError) as error:
        # A network file system without locks, say.
        warn(
            f"the folder {folder} cannot be locked ({error}): see to it that no second process "
            "works in it"
        )
    if before := _owner(folder):
        warn(f"{before} ended without finishing in {folder}: its work goes on here")
    try:
        write_sealed(folder / OWNER, attrs.asdict(Owner.me()))
        # Most folders in it are not written to again once their part is done.
        sweep(folder, deep=True)
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _living_owner(folder: Path) -> Owner | None:
    """Who has the folder; it may be about to say so, in the place of one that died."""
    deadline = time.monotonic() + NAMING_SECONDS
    while True:
        owner = _owner(folder)
        here = owner is not None and owner.host == socket.gethostname()
        if owner and (not here or owner.pid == os.getpid() or lives(owner.pid)):
            return owner
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)


def _owner(folder: Path) -> Owner | None:
    """Who says to be the owner; None if nobody does."""
    with suppress(UserError):
        return read_record(folder / OWNER, Owner)
    return None
