"""The JSON Schema of pipeline files, with the options of every installed component.

Editors complete and check a file by it: ``permllm schema > pipeline.schema.json``,
and ``# yaml-language-server: $schema=pipeline.schema.json`` as the file's first line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import attrs

from permllm.components import KINDS, Component
from permllm.core.durations import Duration
from permllm.core.patterns import Pattern
from permllm.pipeline.dotted_keys import EXCLUDE, INCLUDE, REPEAT
from permllm.pipeline.lookup import Lookup
from permllm.pipeline.matrix.shape import MAX_REPEAT
from permllm.pipeline.options import (
    OptionInfo,
    component_kind,
    describe_options,
    element,
    mapping_element,
    members,
)
from permllm.pipeline.schema import SOURCES, Pipeline

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

_QUALIFIED = {"type": "string", "pattern": "^[^:]+:[^:]+$"}
# A component by package and name; which there are, the reader says.


def pipeline_schema(registry: Lookup) -> Schema:
    """The JSON Schema (draft 2020-12) of pipeline files.

    Args:
        registry: whose components' options the schema knows.
    """
    schema = _object(describe_options(Pipeline), optional=("name",))
    schema["properties"]["track"] = _track(registry) | _described(Pipeline, "track")
    schema["properties"]["matrix"] = _matrix() | _described(Pipeline, "matrix")
    definitions = {kind: _component(kind, registry) for kind in KINDS}
    return {
        "$schema": DIALECT,
        "title": "permllm pipeline",
        "description": "One pruning pipeline, for permllm run",
        **schema,
        "$defs": definitions,
    }


def _described(cls: type, name: str) -> Schema:
    info = next(info for info in describe_options(cls) if info.name == name)
    return {"description": info.help, "default": info.default}


def _object(options: Sequence[OptionInfo], *, optional: Sequence[str] = ()) -> Schema:
    """A mapping with these keys and no others."""
    required = [info.name for info in options if info.required and info.name not in optional]
    schema: Schema = {
        "type": "object",
        "properties": {info.name: _property(info) for info in options},
        "additionalProperties": False,
    }
    return schema | ({"required": required} if required else {})


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
    simple: dict[Any, Schema] = {
        bool: {"type": "boolean"},
        int: {"type": "integer"},
        float: {"type": "number"},
        str: {"type": "string"},
        Path: {"type": "string", "minLength": 1},
        Pattern: {"type": "string", "pattern": r"^[0-9]+:[0-9]+$"},
        Duration: {"type": "string", "pattern": r"^([0-9.]+h)?([0-9.]+m)?([0-9.]+s)?$"},
        NoneType: {"type": "null"},
        Any: {},
    }
    if hint in simple:
        return dict(simple[hint])
    if len(members(hint)) > 1:
        return {"anyOf": [_type(member) for member in members(hint)]}
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if kind := component_kind(hint):
        return {"$ref": f"#/$defs/{kind}"}
    if (inner := element(hint)) is not None:
        return {"type": "array", "items": _type(inner)}
    if (inner := mapping_element(hint)) is not None:
        return {"type": "object", "additionalProperties": _type(inner)}
    return _class(hint)


def _class(cls: type) -> Schema:
    """A section of the file, or a model source with its tag."""
    assert attrs.has(cls)
    schema = _object(describe_options(cls))
    tag = next((tag for tag, source in SOURCES.items() if source is cls), None)
    if tag is None:
        return {**schema, "type": ["object", "null"]} if "required" not in schema else schema
    schema["properties"] = {"source": {"const": tag}} | schema["properties"]
    schema["required"] = ["source", *schema.get("required", [])]
    return schema


def _component(kind: str, registry: Lookup) -> Schema:
    """A component of a kind: its bare name, or a mapping with its name and options."""
    found = registry.components(kind)
    names: list[Schema] = [
        {"const": name, "description": entry.cls.summary()} for name, entry in found.items()
    ]
    mappings = [_mapping(name, entry.cls) for name, entry in found.items()]
    others = {
        "type": "object",
        "properties": {"name": _QUALIFIED | {"not": {"enum": list(found)}}},
        "required": ["name"],
    }
    return {"anyOf": [*names, _QUALIFIED, *mappings, others]}


def _mapping(name: str, cls: type[Component]) -> Schema:
    schema = _options(cls)
    schema["properties"] = {"name": {"const": name}} | schema["properties"]
    schema["required"] = ["name", *schema.get("required", [])]
    return {"title": name, **schema, "description": cls.summary()}


def _options(cls: type[Component]) -> Schema:
    """The options of a component, and its presets where it has some."""
    schema = _object(describe_options(cls))
    if presets := getattr(cls, "presets", None):
        preset = {"enum": list(presets), "description": "published settings to start from"}
        schema["properties"]["preset"] = preset
    return schema


def _track(registry: Lookup) -> Schema:
    """``track:`` as a mapping of observers to options, or as a list of observers."""
    options = {
        name: {**_options(entry.cls), "type": ["object", "null"]}
        for name, entry in registry.components("observer").items()
    }
    mapping = {
        "type": "object",
        "properties": options,
        "patternProperties": {_QUALIFIED["pattern"]: {"type": ["object", "null"]}},
        "additionalProperties": False,
    }
    return {"anyOf": [mapping, {"type": "array", "items": {"$ref": "#/$defs/observer"}}]}


def _matrix() -> Schema:
    """``matrix:``: dotted keys with values, whose types the reader checks, and what goes with them.

    The values of a key are a list, or a mapping of their names.
    """
    keys = {"pattern": r"^[^.\s]+(\.[^.\s]+)*$"}
    named = {"type": "object", "minProperties": 1, "propertyNames": {"not": {"const": "name"}}}
    entry = {"type": "object", "propertyNames": keys}
    return {
        "type": ["object", "null"],
        "propertyNames": keys,
        "properties": {
            INCLUDE: {
                "description": "further combinations beside the product",
                "type": "array",
                "minItems": 1,
                "items": entry,
            },
            EXCLUDE: {
                "description": "values of combinations that are left out of the product",
                "type": "array",
                "minItems": 1,
                "items": {**entry, "minProperties": 1},
            },
            REPEAT: {
                "description": "how often each combination runs, with other seeds each time",
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_REPEAT,
                "default": 1,
            },
        },
        "additionalProperties": {"anyOf": [{"type": "array", "minItems": 1}, named]},
    }
