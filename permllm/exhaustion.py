"""Recognises what a machine has run out of, whichever library says so and however.

Libraries raise errors of their own for a full memory or disk. What is to be done depends on what is
missing and not on who missed it, so it is told here from the error and from what it was raised
from.
"""

from __future__ import annotations

import errno
import os
import re

from permllm.errors import NoSpace, causes

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk can only be read",
    errno.EFBIG: "the file would be larger than files may be here",
}
"""Why nothing more can be written, whatever is tried next, by the operating system's number."""

_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory"
    r"|unable to allocate|bad_alloc|ALLOC_FAILED",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"allocate:? ([\d.]+) ?(bytes|[KMGT]i?B)\b", re.IGNORECASE)
_TEXTS = {os.strerror(number).lower(): number for number in FULL}
_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust, such as safetensors, quote the operating system's number; others have only
its text."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU or on another device."""
    return any(
        isinstance(cause, MemoryError)
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        or (isinstance(cause, RuntimeError) and _MEMORY.search(str(cause)) is not None)
        for cause in causes(error)
    )


def raise_if_out_of_memory(error: BaseException) -> None:
    """Raise an error again that says nothing about what was tried, since memory was missing."""
    if out_of_memory(error):
        raise error


def asked_for(error: BaseException) -> str | None:
    """How much a failed allocation asked for, ``1.5 GiB``; None where the error does not say.

    >>> asked_for(MemoryError("Unable to allocate 7.45 GiB for an array"))
    '7.45 GiB'
    """
    for cause in causes(error):
        if amount_in := _AMOUNT.search(str(cause)):
            amount, unit = amount_in.groups()
            if unit.lower() != "bytes":
                return f"{amount} {unit}"
            count = float(amount)
            return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
    return None


def cannot_write(error: BaseException) -> str | None:
    """Why a disk takes nothing more, such as ``the disk is full``; None for other errors."""
    for cause in causes(error):
        if isinstance(cause, NoSpace):
            return FULL[errno.ENOSPC]
        number = cause.errno if isinstance(cause, OSError) else None
        if number is None:
            number = _quoted(str(cause))
        if number in FULL:
            return FULL[number]
    return None


def _quoted(message: str) -> int | None:
    """The operating system's number of an error that a message quotes."""
    if number := _NUMBER.search(message):
        return int(number[1])
    lower = message.lower()
    return next((number for text, number in _TEXTS.items() if text in lower), None)


def too_many_files(error: BaseException) -> bool:
    """Whether the process has as many files open as it may.

    Python's imports pass over files that they cannot open, and then miss a module or an encoding.
    """
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            return True
        if os.strerror(errno.EMFILE).lower() in str(cause).lower():
            return True
    return isinstance(error, LookupError | ImportError) and not _can_open()


def _can_open() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True
