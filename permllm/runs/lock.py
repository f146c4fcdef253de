"""A run's folder belongs to one process at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import attrs
from filelock import FileLock, Timeout

from permllm.errors import UserError
from permllm.files import read_record, write_sealed

LOCK, OWNER = ".lock", ".owner.json"
"""Files in a run's folder: what the operating system locks, and who holds it."""


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
    that ends.

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
        whose = _owner(folder)
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
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> Owner | None:
    """Who says to be the owner; None if nobody does."""
    with suppress(UserError):
        return read_record(folder / OWNER, Owner)
    return None
