"""Lengths of time, as people write them (``30s``, ``5m``, ``1h30m``), and their ends."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

import attrs

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_FORM = re.compile(r"(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s)?")


@attrs.frozen(order=True)
class Duration:
    """A length of time above zero.

    >>> Duration.parse("1h30m").seconds
    5400.0
    >>> str(Duration(90))
    '1m30s'

    Attributes:
        seconds: how long.

    Raises:
        ValueError: it is not a finite time above zero.
    """

    seconds: float

    def __attrs_post_init__(self) -> None:
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise ValueError(f"a time must be above zero, not {self.seconds:g} s")

    @classmethod
    def parse(cls, text: str) -> Duration:
        """The time that ``text`` such as ``"5m"`` or ``"1h30m"`` names.

        Raises:
            ValueError: it is not written so.
        """
        match = _FORM.fullmatch(text.strip())
        try:
            parts = [float(part or 0) for part in match.groups()] if match else []
        except ValueError:
            parts = []
        if not any(parts):
            raise ValueError(f"{text!r} is not a time such as '30s', '5m' or '1h30m'")
        return cls(sum(part * unit for part, unit in zip(parts, _UNITS.values(), strict=True)))

    def __str__(self) -> str:
        hours, rest = divmod(self.seconds, 3600)
        minutes, seconds = divmod(rest, 60)
        parts = zip((hours, minutes, seconds), _UNITS, strict=True)
        return "".join(f"{number:.12g}{unit}" for number, unit in parts if number)


def never() -> bool:
    """Says of something that it does not end by itself."""
    return False


def over(time_limit: float | None, stop: Callable[[], bool] = never) -> Callable[[], bool]:
    """A function that says whether a time that begins now is over.

    Args:
        time_limit: its length in seconds; None for no limit.
        stop: says whether it ends whatever the limit.
    """
    if time_limit is None:
        return stop
    deadline = time.monotonic() + time_limit
    return lambda: stop() or time.monotonic() >= deadline
