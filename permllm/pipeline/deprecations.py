"""Warnings for options that a pipeline file sets and that a later version will not have."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from permllm.components import KINDS, Component
from permllm.errors import DeprecatedWarning
from permllm.pipeline.document import Document, Keys
from permllm.pipeline.options import default_of, option_fields


def warn_of_deprecated(document: Document, made: Any) -> None:
    """Warn of every deprecated option that a document sets, at its place.

    Args:
        document: what was read.
        made: the attrs class that it was structured to.
    """
    for place, message in deprecated_settings(document, made, ()):
        where = document.origin(place, key=True).error(message)
        # From one line of code, so that a place which every run of a matrix reads is said once.
        warnings.warn(str(where), DeprecatedWarning, stacklevel=1)


def deprecated_settings(document: Document, made: Any, place: Keys) -> Iterator[tuple[Keys, str]]:
    """Where a document sets a deprecated option of ``made`` or of its parts, and what to say."""
    if isinstance(made, tuple | list):
        for index, item in enumerate(made):
            yield from deprecated_settings(document, item, (*place, _key(document, place, index)))
    elif isinstance(made, Mapping):
        for key, item in made.items():
            yield from deprecated_settings(document, item, (*place, key))
    elif attrs.has(type(made)):
        for field in option_fields(type(made)):
            key = field.alias or field.name
            if field.metadata.get("deprecated") and document.holds((*place, key)):
                advice = field.metadata["deprecated"]
                yield (*place, key), f"{_named(made, key)} is deprecated: {advice}"
            yield from deprecated_settings(document, getattr(made, field.name), (*place, key))


def left_out(field: attrs.Attribute[Any], value: Any) -> bool:
    """Whether a resolved pipeline leaves a field out: it is deprecated and has its default.

    Else everybody who reads that back would be warned of what nobody set.
    """
    return bool(field.metadata.get("deprecated")) and value == default_of(field)


def _key(document: Document, place: Keys, index: int) -> str | int:
    """The key of a tuple's item: an index, or a name where ``track:`` is a mapping."""
    if document.holds(place):
        data = document.data
        for key in place:
            data = data[key]
        if isinstance(data, dict):
            return list(data)[index]
    return index


def _named(made: Any, key: str) -> str:
    kind = next((kind for kind, base in KINDS.items() if isinstance(made, base)), None)
    if kind is None or not isinstance(made, Component):
        return f"key '{key}'"
    return f"option '{key}' of {kind} '{made.name}'"
