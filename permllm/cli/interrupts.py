"""Ctrl-C that cannot get lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from permllm.hooks import hookimpl

if TYPE_CHECKING:
    from permllm.registry import Registry


class Interruption:
    """Raises KeyboardInterrupt once more where the first one went nowhere.

    Python drops what is raised while an object is destroyed or the garbage collector calls
    back, the KeyboardInterrupt of Ctrl-C included, and libraries do much at such times.
    """

    def __init__(self) -> None:
        self.asked = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What Python does with SIGINT, and remember it."""
        self.asked = True
        signal.default_int_handler(number, frame)

    @hookimpl
    def permllm_progress(self) -> None:
        """End the run at the next sign of life, if it was to end before."""
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def interruptible(registry: Registry) -> Iterator[None]:
    """Let Ctrl-C end the block for certain, where Python's own handler stands."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    interruption = Interruption()
    registry.manager.register(interruption)
    signal.signal(signal.SIGINT, interruption.handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        registry.manager.unregister(interruption)
