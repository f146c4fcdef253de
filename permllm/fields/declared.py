"""The fields of a class as it declares them: their keys and defaults."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import attrs

T = TypeVar("T")

REFERENCE = "reference"
"""Metadata key of a field's default component, written as in a pipeline file."""


def reference(default: Any, *, help: str) -> Any:
    """A field whose default is written as in a pipeline file, and made by its reader."""
    return attrs.field(metadata={"help": help, REFERENCE: default})


def once_per_class(describe: Callable[[type], T]) -> Callable[[type], T]:
    """Keeps what a function says of a class, whose fields do not change."""
    return cache(describe)


@once_per_class
def option_fields(cls: type) -> tuple[attrs.Attribute[Any], ...]:
    """The attrs fields that a pipeline file can set."""
    return tuple(field for field in attrs.fields(cls) if field.init)


def key_of(field: attrs.Attribute[Any]) -> str:
    """The key of a field in the file."""
    return field.alias or field.name


def default_of(field: attrs.Attribute[Any]) -> Any:
    """A field's default: a reference as in a file, or a value."""
    if REFERENCE in field.metadata:
        return field.metadata[REFERENCE]
    factory = getattr(field.default, "factory", None)
    if factory is None:
        return field.default
    return None if getattr(field.default, "takes_self", False) else factory()


def left_out(field: attrs.Attribute[Any], value: Any) -> bool:
    """Whether plain data leaves a field out: it is deprecated and has its default.

    Else everybody who reads that back would be warned of what nobody set.
    """
    return bool(field.metadata.get("deprecated")) and value == default_of(field)
