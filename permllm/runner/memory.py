"""Peak memory of a stretch of a run, and what becomes of memory that is free again."""

from __future__ import annotations

import ctypes
import platform
import threading
from types import TracebackType

import psutil


class PeakMemory:
    """The highest resident memory of this process within a ``with`` block, in bytes.

    The operating system only keeps the peak since the process began, so a thread
    samples it. Memory of CUDA devices counts on top.
    """

    def __init__(self, seconds: float = 0.05) -> None:
        self._seconds = seconds
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        import torch

        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import torch

        self._done.set()
        self._thread.join()
        self._sample()
        devices = range(torch.cuda.device_count())
        self.bytes += sum(torch.cuda.max_memory_allocated(device) for device in devices)

    def _watch(self) -> None:
        while not self._done.wait(self._seconds):
            self._sample()

    def _sample(self) -> None:
        self.bytes = max(self.bytes, self._process.memory_info().rss)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of the C library's ``mallopt``."""


def keep_freed_memory() -> None:
    """Have this process keep what it frees, for its next tensors (glibc only).

    A learning step allocates and frees gigabytes. By default glibc gives every large
    piece back to the operating system, and the next step waits for the same pages to be
    mapped and zeroed again: a third of its time on two cores. The price is a higher peak
    of memory, by a tenth to a quarter. It holds for the whole process, so only programs of
    permllm call it, never the library.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, 2**30)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
