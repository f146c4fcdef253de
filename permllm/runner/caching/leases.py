"""Leases: who computes an entry of a cache now, so that nobody else does so meanwhile.

A lease is a small file. Its owner creates it where there is none, touches it every few seconds,
and removes it at the end. Whoever finds another's waits until that is gone, and then finds the
entry. The lease of an owner that died stands still: a waiter sees that by its own clock, since
those of two machines differ, or by the process being gone where both are on one machine. To break
a lease is to rename it, which only one can.

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

import attrs

from permllm.errors import UserError
from permllm.files import ABANDONED_SECONDS, converted, lives, parse_json
from permllm.runs.lock import Owner

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


@attrs.frozen(eq=False)
class Leases:
    """The leases of a cache, as one process takes them.

    Attributes:
        folder: where they are; it is made when the first is taken.
        ttl: seconds after which one that stands still may be broken.
        beat: seconds between two touches of the process's own.
        me: what its leases hold, which tells them from all others.
    """

    folder: Path
    ttl: float = TTL
    beat: float = BEAT
    me: bytes = attrs.field(init=False, factory=lambda: _signature(Owner.me()))

    def of(self, kind: str, key: str) -> Lease:
        """The lease of an entry, which nobody has taken by that."""
        return Lease(self.folder / f"{kind}-{key}.lease", self)

    def sweep(self) -> int:
        """Remove those of owners that died on this machine, or a day ago; how many."""
        abandoned = [path for path in self.folder.glob("*.lease*") if self._is_abandoned(path)]
        for path in abandoned:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        return len(abandoned)

    def _is_abandoned(self, path: Path) -> bool:
        sign = _sign(path) if _NAME.fullmatch(path.name) else None
        if sign is None:
            return False
        return _is_dead(_owner(sign[0])) or sign[1] / 1e9 < time.time() - ABANDONED_SECONDS


@attrs.define(eq=False)
class Lease:
    """One lease, and what this process has seen of it.

    Attributes:
        path: the file.
        leases: of which it is one.
        mine: whether this process has to remove it.
    """

    path: Path
    leases: Leases
    mine: bool = False
    _seen: tuple[bytes, int] | None = None
    _stood: float = 0.0
    _turns: int = 0
    _waits: float | None = None
    _says: float = 0.0
    _said: str = ""
    _released: threading.Event = attrs.field(factory=threading.Event)

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
            if whose is not None:
                self._say(now, whose, tell)
                time.sleep(min(pause, until - now))
                pause = min(1.5 * pause, LAST_LOOK)
        if self._said:
            tell(self._said, True)
        return True

    def release(self) -> None:
        """Give it back, if it is this process's."""
        self._released.set()
        sign = _sign(self.path) if self.mine else None
        self.mine = False
        if sign is not None and sign[0] == self.leases.me:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _taken(self) -> bool:
        """Whether there is nothing to wait for: it is this process's now, or was, or cannot be."""
        with suppress(OSError):
            self.leases.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self.path.open("xb") as file:
                self.mine = True
                file.write(self.leases.me)
        except FileExistsError:
            sign = _sign(self.path)
            return sign is not None and sign[0] == self.leases.me
        except OSError:
            return True
        threading.Thread(target=self._beat, name=f"lease {self.path.name}", daemon=True).start()
        return True

    def _beat(self) -> None:
        """Touch it until it is released, or has been broken."""
        while not self._released.wait(self.leases.beat):
            with suppress(OSError):
                sign = _sign(self.path)
                if sign is None or sign[0] != self.leases.me:
                    return
                os.utime(self.path)

    def _watched(self) -> str | None:
        """Whose it is; None where it is free now, maybe by having been broken."""
        sign, now = _sign(self.path), time.monotonic()
        before = self._seen
        if sign != before:
            self._seen, self._stood = sign, now
            self._turns += before is not None and (sign is None or sign[0] != before[0])
        if sign is None:
            return None
        owner = _owner(sign[0])
        if _is_dead(owner) or now - self._stood > self.leases.ttl:
            self._break(sign[0])
            return None
        return str(owner or "another process")

    def _break(self, content: bytes) -> None:
        """Take away the lease of a dead owner, of which this is the content."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.broken")
        with suppress(OSError):
            self.path.rename(aside)
            sign = _sign(aside)
            if sign is not None and sign[0] != content:
                # Another was quicker, and somebody has taken it anew since it was looked at.
                with suppress(OSError):
                    os.link(aside, self.path)
            aside.unlink(missing_ok=True)

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
    """What a lease holds, and when it was touched; None where there is none.

    It is opened for that: only then file systems of a network ask the server.
    """
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
