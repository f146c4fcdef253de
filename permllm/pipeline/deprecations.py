"""Warnings for options that a pipeline file sets and that a later version will not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from permllm.components import KINDS, Component
from permllm.fields.declared import key_of, option_fields
from permllm.fields.errors import Keys
from permllm.pipeline.document import Document


def deprecated_settings(document: Document, made: Any) -> dict[str, None]:
    """What to say of every deprecated option that a document sets, each with its place.

    Args:
        document: what was read.
        made: the attrs class that it was structured to.
    """
    return {
        str(document.origin(place, key=True).error(message)): None
        for place, message in _settings(document.data, made, ())
    }


def _settings(data: Any, made: Any, place: Keys) -> Iterator[tuple[Keys, str]]:
    """Where plain data sets a deprecated option of what was made of it."""
    for key, item, part in _parts(data, made):
        yield from _settings(item, part, (*place, key))
    if isinstance(data, dict) and attrs.has(type(made)):
        for field in option_fields(type(made)):
            key = key_of(field)
            if key in data and (advice := field.metadata.get("deprecated")):
                yield (*place, key), f"{_named(made, key)} is deprecated: {advice}"


def _parts(data: Any, made: Any) -> Iterator[tuple[str | int, Any, Any]]:
    """The parts of plain data by their keys, with what was made of each."""
    if isinstance(made, tuple | list) and isinstance(data, dict | list):
        # ``track:`` may be a mapping of names.
        pairs = data.items() if isinstance(data, dict) else enumerate(data)
        yield from ((key, item, part) for (key, item), part in zip(pairs, made, strict=False))
    elif isinstance(made, Mapping) and isinstance(data, dict):
        yield from ((key, data[key], part) for key, part in made.items() if key in data)
    elif isinstance(data, dict) and attrs.has(type(made)):
        for field in option_fields(type(made)):
            if (key := key_of(field)) in data:
                yield key, data[key], getattr(made, field.name)


def _named(made: Any, key: str) -> str:
    kind = next((kind for kind, base in KINDS.items() if isinstance(made, base)), None)
    if kind is None or not isinstance(made, Component):
        return f"key '{key}'"
    return f"option '{key}' of {kind} '{made.name}'"
