"""Plain data, such as YAML holds: mappings with keys that are texts, lists and scalars."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from permllm.fields.errors import Keys

ABSENT: Any = object()
"""What stands where there is no value."""


def walk(data: Any, place: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every scalar (and empty list or mapping) of plain data with where it stands."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from walk(value, (*place, key))
    elif isinstance(data, list) and data:
        for index, value in enumerate(data):
            yield from walk(value, (*place, index))
    else:
        yield place, data


def value_at(data: Any, place: Iterable[str | int]) -> Any:
    """The value of plain data at a place, or :data:`ABSENT`; indices may be texts."""
    for key in place:
        if isinstance(data, dict) and key in data:
            data = data[key]
        elif isinstance(data, list) and str(key).isdecimal() and int(key) < len(data):
            data = data[int(key)]
        else:
            return ABSENT
    return data


def identity(value: Any) -> Hashable:
    """What two plain values share exactly if they are the same, types included."""
    if isinstance(value, dict):
        return frozenset((key, identity(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(identity(item) for item in value)
    if isinstance(value, str):
        # A base's texts know their folder.
        return str, str(value)
    return type(value), value


def dotted(place: Keys) -> str:
    """A place as it is written in ``--set``: ``evaluate.0.length``."""
    return ".".join(str(key) for key in place)
