"""The JSON Schema of fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from permllm.fields.options import OptionInfo, describe_options
from permllm.fields.types import TAG, Schema, kind_of, tag_of


def object_schema(options: Sequence[OptionInfo], *, optional: Sequence[str] = ()) -> Schema:
    """A mapping with the keys of some options and no others.

    Args:
        options: its keys.
        optional: those that may be left out although they have no default.
    """
    required = [info.name for info in options if info.required and info.name not in optional]
    schema: Schema = {
        "type": "object",
        "properties": {info.name: _property(info) for info in options},
        "additionalProperties": False,
    }
    return schema | ({"required": required} if required else {})


def with_constant(schema: Schema, key: str, value: str) -> Schema:
    """The schema of a mapping that has a certain value at a further key, which comes first."""
    return {
        **schema,
        "properties": {key: {"const": value}} | schema["properties"],
        "required": [key, *schema.get("required", [])],
    }


def _property(info: OptionInfo) -> Schema:
    schema = _limited(_type(info.type), info)
    if info.help:
        schema["description"] = info.help
    if not info.required:
        schema["default"] = info.default
    if info.deprecated:
        schema["deprecated"] = True
        schema["description"] = f"{info.help} (deprecated: {info.deprecated})"
    return schema


def _limited(schema: Schema, info: OptionInfo) -> Schema:
    """The schema of a type with an option's range, on the members that it is meant for."""
    if "anyOf" in schema:
        return {"anyOf": [_limited(member, info) for member in schema["anyOf"]]}
    limits: Schema = {}
    if schema.get("type") in ("integer", "number"):
        limits = {"minimum": info.minimum, "maximum": info.maximum}
    if schema.get("type") == "string" and info.choices:
        limits = {"enum": list(info.choices)}
    return schema | {key: value for key, value in limits.items() if value is not None}


def _type(hint: Any) -> Schema:
    """The schema of the values that a type takes in a file."""
    row = kind_of(hint)
    assert row is not None
    return _class(hint) if row.schema is None else row.schema(hint, _type)


def _class(cls: type) -> Schema:
    """A section of the file, or one of several classes with its tag."""
    schema = object_schema(describe_options(cls))
    if tag := tag_of(cls):
        return with_constant(schema, TAG, tag)
    return schema if "required" in schema else {**schema, "type": ["object", "null"]}
