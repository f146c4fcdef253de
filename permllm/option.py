"""Declares an option: a field of a component, or a key of another part of a pipeline file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs


def option(
    default: Any = attrs.NOTHING,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Iterable[str] | None = None,
    factory: Any = None,
    deprecated: str | None = None,
) -> Any:
    """A field of a component, or of any other part of a pipeline file.

    Args:
        default: its default; without one (and without ``factory``) it is required.
        help: one line on what it does, with the unit where it has one.
        minimum, maximum: the range, both ends included.
        choices: the only strings that are allowed.
        factory: makes the default where it must not be shared.
        deprecated: what to use instead, such as ``"use block"``, for an option that a
            later version will not have. It works still; a file that sets it is warned.
    """
    facts: dict[str, Any] = {
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices and tuple(choices),
        "deprecated": deprecated,
    }
    metadata = {"help": help} | {key: value for key, value in facts.items() if value is not None}
    validators: list[Any] = []
    if minimum is not None:
        validators.append(attrs.validators.ge(minimum))
    if maximum is not None:
        validators.append(attrs.validators.le(maximum))
    if choices is not None:
        validators.append(attrs.validators.in_(tuple(choices)))
    validator = attrs.validators.optional(validators) if validators else None
    if factory is not None:
        return attrs.field(factory=factory, metadata=metadata, validator=validator)
    return attrs.field(default=default, metadata=metadata, validator=validator)
