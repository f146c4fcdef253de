"""Warnings for options that a pipeline file sets and that a later version will not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from permllm.components import KINDS, Component
from permllm.fields.declared import key_of, option_fields
from permllm.fields.errors import Keys
from permllm.pipeline.document import Document


class Deprecations:
    """Finds the deprecated options that documents of one file set, each once."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._messages: set[str] = set()

    def new(self, document: Document, made: Any) -> list[str]:
        """What to say of each option that is set, with its place, unless it was said before.

        Args:
            document: what was read.
            made: the attrs class that it was structured to.
        """
        messages = {
            str(document.origin(place, key=True).error(message)): None
            for place, message in self._settings(document.data, made, ())
        }
        news = [message for message in messages if message not in self._messages]
        self._messages.update(news)
        return news

    def _settings(self, data: Any, made: Any, place: Keys) -> Iterator[tuple[Keys, str]]:
        """Where plain data sets a deprecated option of what was made of it."""
        if not isinstance(data, dict | list) or id(data) in self._seen:
            return
        # With the data, so that no other can get its id.
        self._seen[id(data)] = data
        for key, item, part in _parts(data, made):
            yield from self._settings(item, part, (*place, key))
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
