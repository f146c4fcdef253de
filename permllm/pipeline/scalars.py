"""Single values of a pipeline file, strictly: true is no number, and "3" is none either.

Each function is a structure hook of cattrs: it takes plain data and the wanted type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

from permllm.core.durations import Duration
from permllm.core.patterns import Pattern
from permllm.errors import did_you_mean
from permllm.pipeline.field_errors import FieldError, expected, shown
from permllm.pipeline.options import range_text

LARGEST = 2**63 - 1
"""The largest whole number that tensors hold; larger ones are refused everywhere."""


def boolean(value: Any, hint: Any) -> bool:
    """``true`` or ``false``."""
    if not isinstance(value, bool):
        raise expected(bool, value)
    return value


def whole(value: Any, hint: Any) -> int:
    """A whole number that fits 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise expected(int, value)
    if abs(value) > LARGEST:
        raise FieldError(f"{str(value)[:20]}… is too large; the largest whole number is {LARGEST}")
    return value


def number(value: Any, hint: Any) -> float:
    """A finite number; whole ones are turned into floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise expected(float, value)
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise FieldError(f"expected a finite number of usual size, not {shown(value)}")
    return float(value)


def text(value: Any, hint: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise expected(str, value, "put it in quotes" if is_scalar(value) else None)
    return value


def pattern(value: Any, hint: Any) -> Pattern:
    """An N:M pattern, such as ``2:4``."""
    if not isinstance(value, str):
        raise expected(Pattern, value)
    try:
        return Pattern.parse(value)
    except ValueError as error:
        raise FieldError(str(error)) from error


def duration(value: Any, hint: Any) -> Duration:
    """A time, such as ``5m``."""
    if not isinstance(value, str):
        raise expected(Duration, value, "write 90s or 5m" if is_scalar(value) else None)
    try:
        return Duration.parse(value)
    except ValueError as error:
        raise FieldError(str(error)) from error


def literal(value: Any, hint: Any) -> Any:
    """One of the values of a ``Literal``."""
    for choice in get_args(hint):
        if value == choice and type(value) is type(choice):
            return choice
    raise expected(hint, value)


STRICT: dict[Any, Callable[[Any, Any], Any]] = {
    bool: boolean,
    int: whole,
    float: number,
    str: text,
}
"""How the types are read whose values Python and YAML spell alike."""


def is_scalar(value: Any) -> bool:
    """Whether a value is a text, a number, true or false."""
    return value is not None and not isinstance(value, (list, dict))


def check_range(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    """Refuse a value outside the ``minimum``, ``maximum`` or ``choices`` of its option."""
    minimum, maximum = limits.get("minimum"), limits.get("maximum")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        too_small = minimum is not None and value < minimum
        if too_small or (maximum is not None and value > maximum):
            raise FieldError(f"{key} must be {range_text(minimum, maximum)}, not {value}")
    choices = limits.get("choices")
    if choices and value is not None and value not in choices:
        hint = did_you_mean(str(value), choices)
        raise FieldError(f"{key} must be one of {', '.join(choices)}, not {shown(value)}", hint)
