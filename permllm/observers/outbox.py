"""What is to be done with a store that may be away for a while: in order, and none of it twice."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import attrs

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0
"""Seconds until a store that failed is tried again: twice as long each time."""

PATIENCE = 8.0
"""Seconds of a run that failures may cost in all, waiting included."""

LONGEST_ABSENCE = 900.0
"""A store that was away for so many seconds is given up."""

MOST_WAITING = 10_000
"""So many errands may wait."""

NAMED = 4
"""So many kinds of what is missing are named."""


class AwayError(Exception):
    """The store could not be reached or is busy: what failed may be done later."""


@attrs.define(eq=False)
class Outbox:
    """Does one thing after the other, at once if it can be done.

    Where the store is away, everything waits in order, and the run goes on meanwhile. The work is
    done in a thread of its own, and waited for: who is interrupted stops waiting, but no
    transaction is cut in two, which would lock a database for all that follows.

    Attributes:
        on_giving_up: is told of the last error and of what is left undone, in words. Nothing
            is done after that.
        failures: what work may raise; all but an AwayError are for good.
    """

    on_giving_up: Callable[[Exception, str], None]
    failures: tuple[type[Exception], ...] = (AwayError,)
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    closed: bool = False
    lost: float = 0.0
    away_since: float | None = None
    pause: float = FIRST_PAUSE
    next_try: float = 0.0
    waiting: deque[tuple[str, Callable[[], Any]]] = attrs.field(factory=deque)
    worker: ThreadPoolExecutor = attrs.field(factory=lambda: ThreadPoolExecutor(1))
    running: Future[Any] | None = None

    def add(self, what: str, work: Callable[..., Any], *arguments: Any) -> None:
        """Do ``work(*arguments)`` after all that waits; ``what`` names it where that fails."""
        if not self.closed:
            self.waiting.append((what, partial(work, *arguments)))
            self.deliver()

    def deliver(self, *, wait: bool = False) -> None:
        """Do what waits as far as it can be done.

        Args:
            wait: for a store that is away, as long as patience lasts.
        """
        while self.waiting and not self.closed:
            left = self.next_try - self.now()
            if self.away_since is not None and left > 0:
                if not wait:
                    return
                left = min(left, max(0.0, PATIENCE - self.lost))
                self.sleep(left)
                self.lost += left
            self._try()

    def close(self) -> None:
        """Do what waits, as long as patience lasts, and give the thread back."""
        self.deliver(wait=True)
        self.closed = True
        self.worker.shutdown(wait=False)

    def _try(self) -> None:
        began = self.now()
        # It may run already, where waiting for it was interrupted: then it is not begun again.
        running = self.running = self.running or Future()
        try:
            self.worker.submit(_do, self.waiting[0][1], running)
            running.result()
        except self.failures as error:
            self.running = None
            self._failed(error, began)
        except BaseException:
            if running.done() and running.exception() is not None:
                self.running = None
            raise
        else:
            self.running = None
            self.waiting.popleft()
            self.away_since, self.pause = None, FIRST_PAUSE

    def _failed(self, error: Exception, began: float) -> None:
        now = self.now()
        self.lost += now - began
        self.away_since = began if self.away_since is None else self.away_since
        if (
            not isinstance(error, AwayError)
            or self.lost >= PATIENCE
            or now - self.away_since > LONGEST_ABSENCE
            or len(self.waiting) > MOST_WAITING
        ):
            self.closed = True
            undone = self._undone()
            self.waiting.clear()
            self.on_giving_up(error, undone)
            return
        self.next_try = now + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)

    def _undone(self) -> str:
        kinds = list(dict.fromkeys(what for what, _ in self.waiting))
        more = len(kinds) - NAMED
        return ", ".join(kinds[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _do(work: Callable[[], Any], running: Future[Any]) -> None:
    """Do the work unless it was begun before; the thread is the only one that does any."""
    if running.running() or running.done():
        return
    running.set_running_or_notify_cancel()
    try:
        result = work()
    except BaseException as error:
        running.set_exception(error)
    else:
        running.set_result(result)
