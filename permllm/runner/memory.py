"""Peak memory of a stretch of a run."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil


class PeakMemory:
    """The most memory of its own that this process has within a ``with`` block, in bytes.

    What is mapped from files, such as dense weights, does not count where the operating system
    tells it apart: it makes room when memory is asked for.

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
        info = self._process.memory_info()
        self.bytes = max(self.bytes, info.rss - getattr(info, "shared", 0))
