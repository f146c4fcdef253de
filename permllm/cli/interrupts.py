"""Ctrl-C, SIGTERM and SIGHUP: a run ends in order, once, and the interruption cannot get lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from permllm.hooks import hookimpl

if TYPE_CHECKING:
    from permllm.registry import Registry

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""What a user, a batch system or a closed terminal ends a process with. Windows has no SIGHUP."""

UNHANDLED = (signal.SIG_DFL, signal.default_int_handler)
"""Handlers that nobody chose: a parent that has a signal ignored, such as nohup, did."""


class Interrupted(KeyboardInterrupt):
    """The process was asked to end; like Ctrl-C no ``Exception``, so that nothing swallows it.

    Attributes:
        signal: what asked.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


class Interruption:
    """Raises :class:`Interrupted`, and once more where the first one went nowhere.

    Python drops what is raised while an object is destroyed or the garbage collector calls
    back, the KeyboardInterrupt of Ctrl-C included, and libraries do much at such times.

    Attributes:
        asked: the signal that came, as long as a run has not ended for it.
    """

    def __init__(self) -> None:
        self.asked: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> NoReturn:
        """Remember the signal, and end the process at once for another one."""
        self.asked = number
        for other in ENDING:
            if _interruption_of(other) is self:
                signal.signal(other, _for_the_second(other, number))
        raise Interrupted(number)

    @hookimpl
    def permllm_progress(self) -> None:
        """End the run at the next sign of life, if it was to end before."""
        if self.asked is not None:
            raise Interrupted(self.asked)

    @hookimpl(tryfirst=True)
    def permllm_plan_failed(self) -> None:
        """The run ends: nobody is to be interrupted in what is left to do."""
        self.asked = None


@contextmanager
def interruptible(registry: Registry | None = None) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the block for certain, where nobody else handles them.

    Args:
        registry: its runs end even where Python drops the interruption; a block within
            another one has the same handlers.
    """
    interruption = next(filter(None, map(_interruption_of, ENDING)), None)
    if interruption is None:
        with _handling(Interruption()) as interruption:
            yield from _registered(interruption, registry)
    else:
        yield from _registered(interruption, registry)


@contextmanager
def _handling(interruption: Interruption) -> Iterator[Interruption]:
    before = {number: signal.getsignal(number) for number in ENDING}
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number in ENDING if main and before[number] in UNHANDLED]
    for number in ours:
        signal.signal(number, interruption.handle)
    try:
        yield interruption
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _registered(interruption: Interruption, registry: Registry | None) -> Iterator[None]:
    if registry is None:
        yield
        return
    registry.manager.register(interruption)
    try:
        yield
    finally:
        registry.manager.unregister(interruption)


def _interruption_of(number: int) -> Interruption | None:
    """What handles a signal, if it is one of ours."""
    owner = getattr(signal.getsignal(number), "__self__", None)
    return owner if isinstance(owner, Interruption) else None


def _for_the_second(number: int, first: int) -> signal.Handlers | Callable[..., NoReturn]:
    """How a signal is handled after the ``first`` one.

    By the kernel, which does not wait for a long computation to come back to Python.
    """
    if number == first == getattr(signal, "SIGHUP", None):
        # A terminal that closes says so twice: the kernel, and then the shell.
        return signal.SIG_IGN
    # The kernel spares the first process of a container.
    return _end_at_once if os.getpid() == 1 else signal.SIG_DFL


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)
