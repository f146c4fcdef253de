"""What is made of the very same object is made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Once:
    """Keeps what was made of objects: the runs of a matrix share most of their parts."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, Any], tuple[Any, Any]] = {}

    def __call__(self, make: Callable[[], Any], value: Any, use: Any = None) -> Any:
        """What ``make`` gives, which it makes of a value for some use; from the first time on."""
        key = (id(value), use)
        if key not in self._kept:
            # With the value, so that no other can get its id.
            self._kept[key] = (value, make())
        return self._kept[key][1]
