"""What becomes of memory that is free again: kept for the next tensors, or given back."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys

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
    if library := _glibc():
        library.mallopt(_MMAP_THRESHOLD, 2**30)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Give what is free to the operating system and to other users of the devices.

    Between tensors that live long there are holes, which grow from step to step where sizes vary.
    """
    gc.collect()
    if library := _glibc():
        library.malloc_trim(0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def limit_freed_memory(most: int = 2**29) -> None:
    """Give back what is free, if it is more than so many bytes (glibc only)."""
    library = _glibc()
    if library is None or not hasattr(library, "mallinfo2"):
        return
    look = library.mallinfo2
    look.restype = _Heap
    if look().fordblks > most:
        library.malloc_trim(0)


class _Heap(ctypes.Structure):
    """What the C library says of its heap: ``mallinfo2``; ``fordblks`` are free bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    )  # fmt: skip


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
