"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable


def duration(seconds: float) -> str:
    """Seconds in at most two units.

    >>> duration(0.42), duration(83), duration(480), duration(7265)
    ('0.4 s', '1 min 23 s', '8 min', '2 h 1 min')
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    large, small, names = (whole // 60, whole % 60, ("min", "s"))
    if whole >= 3600:
        large, small, names = whole // 3600, whole % 3600 // 60, ("h", "min")
    return f"{large} {names[0]} {small} {names[1]}" if small else f"{large} {names[0]}"


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``, for what changes while one looks.

    >>> clock(0.4), clock(83), clock(7265)
    ('0:00', '1:23', '2:01:05')
    """
    whole = int(max(0.0, seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def memory(count: float) -> str:
    """Bytes in MiB, GiB or TiB.

    >>> memory(3.3e9), memory(200e6), memory(20e12)
    ('3.1 GiB', '191 MiB', '18.2 TiB')
    """
    for size, unit in ((2**40, "TiB"), (2**30, "GiB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**20:.0f} MiB"


def number(value: float) -> str:
    """A figure with about four digits; large ones are whole.

    >>> number(16.8432), number(0.83217), number(85412.7), number(3e9)
    ('16.84', '0.8322', '85413', '3.00e+09')
    """
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if abs(value) >= 1e7:
        return f"{value:.2e}"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    if abs(value) < 1:
        return f"{value:.4g}"
    return f"{value:.{4 - len(str(int(abs(value))))}f}"


def percent(share: float, digits: int = 1) -> str:
    """A share of 1 in per cent.

    >>> percent(0.8327), percent(0.5, 0)
    ('83.3 %', '50 %')
    """
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "–"


def with_deviation(
    mean: float, deviation: float | None, form: Callable[[float], str] = number
) -> str:
    """A figure with what it may differ by, to the same digits and in the same unit.

    Args:
        mean: the figure.
        deviation: of at least 0; None or what is not finite is not shown.
        form: :func:`number` or :func:`percent`.

    >>> with_deviation(34.832, 0.4213), with_deviation(0.77123, 0.002, percent)
    ('34.83 ± 0.42', '77.1 ± 0.2 %')
    >>> with_deviation(0.5, 7e-9, percent), with_deviation(0.5, 0.04), with_deviation(34.832, None)
    ('50.0 ± 0.0 %', '0.5000 ± 0.0400', '34.83')
    """
    digits, blank, unit = form(mean).partition(" ")
    if deviation is None or not (math.isfinite(mean) and math.isfinite(deviation)):
        return f"{digits}{blank}{unit}"
    scaled = 100 * deviation if unit == "%" else deviation
    if not unit and "e" not in digits and abs(mean) < 1:
        # Zeros at the end are digits, too.
        digits = f"{mean:#.4g}"
    decimals = len(digits.partition(".")[2])
    text = number(scaled) if "e" in digits else f"{scaled:.{decimals}f}"
    return f"{digits} ± {text}{blank}{unit}"
