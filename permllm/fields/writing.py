"""Values as plain data: texts, numbers, lists and mappings that read back to the same values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import attrs
from cattrs import Converter

from permllm.components import Component
from permllm.fields.declared import key_of, left_out, option_fields
from permllm.fields.once import Once
from permllm.fields.types import TAG, TYPES, tag_of


def writer(
    name: Callable[[type[Component]], str] = attrgetter("name"), *, bare: bool = False
) -> Converter:
    """What unstructures values: every default is spelled out, classes of a union get their tag.

    The very same object is written once, to plain data that must not be changed.

    Args:
        name: what a file calls a class of components.
        bare: components are written by their names alone, without options.
    """
    converter = Converter(unstruct_collection_overrides={tuple: list})
    for row in TYPES:
        if row.as_text:
            converter.register_unstructure_hook(row.cls, str)

    once = Once()

    def component(value: Component) -> Any:
        own = name(type(value))
        return own if bare else {"name": own, **fields_of(value, converter)}

    # Later registrations are tried first.
    for fits, write in ((attrs.has, partial(_section, converter)), (_is_component, component)):
        hook = partial(_written, once, write)
        converter.register_unstructure_hook_func(fits, hook)
    return converter


def fields_of(value: Any, converter: Converter) -> dict[str, Any]:
    """The fields of an attrs class as plain data."""
    return {
        key_of(field): converter.unstructure(getattr(value, field.name))
        for field in option_fields(type(value))
        if not left_out(field, getattr(value, field.name))
    }


def _written(once: Once, write: Callable[[Any], Any], value: Any) -> Any:
    return once(lambda: write(value), value)


def _section(converter: Converter, value: Any) -> dict[str, Any]:
    tag = tag_of(type(value))
    return ({} if tag is None else {TAG: tag}) | fields_of(value, converter)


def _is_component(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Component)
