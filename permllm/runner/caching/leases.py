"""Leases: who computes an entry of a cache now, so that nobody else does so meanwhile.

A lease is a small file, or an object in a store. Its owner creates it where there is none, touches
it every few seconds, and removes it at the end. Whoever finds another's waits until that is gone,
and then finds the entry. The lease of an owner that died stands still: a waiter sees that by its
own clock, since those of two machines differ, or by the process being gone where both are on one
machine. To break a file is to rename it, which only one can.

Nothing depends on leases but time. Where one is broken too early, or none can be written, the
same is computed twice, as it would be without them.

While a lease is held, others are taken: a window's holds while its order is found, which holds
while statistics are gathered. That cannot come to a circle, since it follows what results are
made of, and no result is made of itself. Several of one kind are taken in one order.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import attrs

from permllm.errors import UserError
from permllm.files import ABANDONED_SECONDS, converted, lives, parse_json
from permllm.runs.lock import Owner

LEASES = "leases"
"""The folder of leases in a cache."""

TTL = 120.0
"""Seconds after which a lease that stands still is its owner's no more.

Longer than computations that hold Python's lock, which keep it from being touched, and than file
systems of a network take to show what another machine wrote.
"""

BEAT = 5.0
"""Seconds between one touch and the next."""

TURNS = 3
"""For so many owners a result is waited for; if none of them has kept it, it is computed."""

FIRST_LOOK, LAST_LOOK = 0.02, 1.0
"""Seconds between two looks at another's lease, which grow."""

WORTH_SAYING, SAY_AGAIN = 1.0, 10.0
"""Seconds of waiting before it is said, and before it is said again."""

_NAME = re.compile(r"[a-z]+-[0-9a-f]{64}\.lease(\.[0-9a-f]{16}\.broken)?")


Sign = tuple[bytes, object]
"""What a lease's owner wrote, and what is another thing after each touch."""


class LeasePlace(Protocol):
    """Where leases are. All methods raise OSError where that fails."""

    def create(self, name: str, content: bytes) -> None:
        """Make a lease where there is none.

        Raises:
            FileExistsError: there is one.
        """

    def read(self, name: str) -> Sign | None:
        """What stands there; None where there is none, or it cannot be read."""

    def touch(self, name: str, content: bytes) -> None:
        """Show that the owner of a lease, of which this is the content, lives."""

    def remove(self, name: str) -> None:
        """Remove a lease."""

    def take_away(self, name: str, content: bytes) -> None:
        """Remove the lease of a dead owner, of which this is the content, and no other."""

    def sweep(self) -> int:
        """Remove those of owners that surely died; how many."""


@attrs.frozen(eq=False)
class LeaseFolder:
    """Leases that are files.

    Attributes:
        folder: where they are; it is made when the first is taken.
    """

    folder: Path

    def create(self, name: str, content: bytes) -> None:
        """Make a lease; see :class:`LeasePlace` for all methods."""
        # Where something else stands in the way, there is no lease, either.
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("xb") as file:
            file.write(content)

    def read(self, name: str) -> Sign | None:
        """It is opened for that: only then file systems of a network ask the server."""
        return _sign(self.folder / name)

    def touch(self, name: str, content: bytes) -> None:
        """Renew its time."""
        os.utime(self.folder / name)

    def remove(self, name: str) -> None:
        """Remove a lease."""
        (self.folder / name).unlink(missing_ok=True)

    def take_away(self, name: str, content: bytes) -> None:
        """Rename it first: whoever else wants to has come too late then."""
        path = self.folder / name
        aside = path.with_name(f"{name}.{secrets.token_hex(8)}.broken")
        path.rename(aside)
        sign = _sign(aside)
        if sign is not None and sign[0] != content:
            # Another was quicker, and somebody has taken it anew since it was looked at.
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove those of owners that died on this machine, or a day ago; how many."""
        abandoned = [path for path in self.folder.glob("*.lease*") if _is_abandoned(path)]
        for path in abandoned:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        return len(abandoned)


@attrs.frozen(eq=False)
class Leases:
    """The leases of a cache, as one process takes them.

    Attributes:
        place: where they are.
        ttl: seconds after which one that stands still may be broken.
        beat: seconds between two touches of the process's own.
        me: what its leases hold, which tells them from all others.
    """

    place: LeasePlace
    ttl: float = TTL
    beat: float = BEAT
    me: bytes = attrs.field(init=False, factory=lambda: _signature(Owner.me()))

    def of(self, kind: str, key: str) -> Lease:
        """The lease of an entry, which nobody has taken by that."""
        return Lease(f"{kind}-{key}.lease", self)


@attrs.define(eq=False)
class Lease:
    """One lease, and what this process has seen of it.

    Attributes:
        name: of it where it is.
        leases: of which it is one.
        mine: whether this process has to remove it.
    """

    name: str
    leases: Leases
    mine: bool = False
    _seen: Sign | None = None
    _stood: float = 0.0
    _turns: int = 0
    _waits: float | None = None
    _says: float = 0.0
    _said: str = ""
    _released: threading.Event = attrs.field(factory=threading.Event)
    _touching: threading.Lock = attrs.field(factory=threading.Lock)

    def asked(self, seconds: float, tell: Callable[[str, bool], None]) -> bool:
        """Whether the waiting is over, after so many seconds at most.

        Then the lease is this process's, or cannot be written, or its owners have kept nothing.

        Args:
            seconds: how long to wait this time.
            tell: is told for whom, and whether that is over.
        """
        until, pause = time.monotonic() + seconds, FIRST_LOOK
        while not self._taken():
            whose = self._watched()
            if self._turns >= TURNS:
                break
            now = time.monotonic()
            if now >= until:
                return False
            if whose is None:
                pause = FIRST_LOOK
            else:
                self._say(now, whose, tell)
            # Also where it seems free: one that cannot be removed must not keep anybody busy.
            time.sleep(min(pause, until - now))
            pause = min(1.5 * pause, LAST_LOOK)
        if self._said:
            tell(self._said, True)
        return True

    def release(self) -> None:
        """Give it back, if it is this process's."""
        self._released.set()
        # A touch that is under way would write anew what has been removed.
        with self._touching:
            self._remove()

    def _remove(self) -> None:
        place, mine, self.mine = self.leases.place, self.mine, False
        sign = place.read(self.name) if mine else None
        if sign is not None and sign[0] == self.leases.me:
            with suppress(OSError):
                place.remove(self.name)

    def _taken(self) -> bool:
        """Whether there is nothing to wait for: it is this process's now, or was, or cannot be."""
        place = self.leases.place
        try:
            place.create(self.name, self.leases.me)
        except FileExistsError:
            sign = place.read(self.name)
            return sign is not None and sign[0] == self.leases.me
        except OSError:
            return True
        self.mine = True
        threading.Thread(target=self._beat, name=f"lease {self.name}", daemon=True).start()
        return True

    def _beat(self) -> None:
        """Touch it until it is released, or has been broken."""
        place, me = self.leases.place, self.leases.me
        while not self._released.wait(self.leases.beat):
            with self._touching, suppress(OSError):
                sign = place.read(self.name)
                if sign is None or sign[0] != me:
                    return
                place.touch(self.name, me)

    def _watched(self) -> str | None:
        """Whose it is; None where it is free now, maybe by having been broken."""
        sign, now = self.leases.place.read(self.name), time.monotonic()
        before = self._seen
        if sign != before:
            self._seen, self._stood = sign, now
            self._turns += before is not None and (sign is None or sign[0] != before[0])
        if sign is None:
            return None
        owner = _owner(sign[0])
        if _is_dead(owner) or now - self._stood > self.leases.ttl:
            with suppress(OSError):
                self.leases.place.take_away(self.name, sign[0])
            return None
        return str(owner or "another process")

    def _say(self, now: float, whose: str, tell: Callable[[str, bool], None]) -> None:
        if self._waits is None:
            self._waits = now
        if now - self._waits >= WORTH_SAYING and now >= self._says:
            self._says, self._said = now + SAY_AGAIN, whose
            tell(whose, False)


def _signature(owner: Owner) -> bytes:
    """What a process writes to its leases; ids come again, so there is a random part."""
    return json.dumps(attrs.asdict(owner) | {"mark": secrets.token_hex(8)}).encode()


def _sign(path: Path) -> tuple[bytes, int] | None:
    """What a lease's file holds, and when it was touched; None where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(2**12), os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _owner(content: bytes) -> Owner | None:
    """Who wrote it; None where that cannot be read, such as while it is being written."""
    with suppress(UserError, UnicodeDecodeError):
        return converted(parse_json(content.decode(), "lease"), Owner, "lease")
    return None


def _is_dead(owner: Owner | None) -> bool:
    """Whether an owner was a process of this machine that is gone."""
    here = owner is not None and owner.host == socket.gethostname()
    return owner is not None and here and owner.pid != os.getpid() and not lives(owner.pid)


def _is_abandoned(path: Path) -> bool:
    """Whether a lease's file is one of somebody who is gone for good."""
    sign = _sign(path) if _NAME.fullmatch(path.name) else None
    if sign is None:
        return False
    return _is_dead(_owner(sign[0])) or sign[1] / 1e9 < time.time() - ABANDONED_SECONDS
