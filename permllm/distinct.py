"""Components without repetition: their options may be mappings, so that they have no hash."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def distinct(components: Iterable[T]) -> list[T]:
    """Each of those that are equal once, in the order of the first ones."""
    found: list[T] = []
    for component in components:
        if component not in found:
            found.append(component)
    return found
