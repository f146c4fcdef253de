"""The JSON Schema of pipeline files, with the options of every installed component.

Editors complete and check a file by it: ``permllm schema > pipeline.schema.json``,
and ``# yaml-language-server: $schema=pipeline.schema.json`` as the file's first line.
"""

from __future__ import annotations

from permllm.components import KINDS, Component
from permllm.fields.options import describe_options
from permllm.fields.schemas import object_schema, with_constant
from permllm.fields.types import Schema
from permllm.pipeline.dotted_keys import EXCLUDE, INCLUDE, REPEAT
from permllm.pipeline.extending import EXTENDS
from permllm.pipeline.lookup import Lookup
from permllm.pipeline.matrix.shape import MAX_REPEAT
from permllm.pipeline.schema import Pipeline

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_QUALIFIED: Schema = {"type": "string", "pattern": "^[^:]+:[^:]+$"}
# A component by package and name; which there are, the reader says.


def pipeline_schema(registry: Lookup) -> Schema:
    """The JSON Schema (draft 2020-12) of pipeline files.

    Args:
        registry: whose components' options the schema knows.
    """
    schema = object_schema(describe_options(Pipeline), optional=("name",))
    schema["properties"][EXTENDS] = {
        "type": "string",
        "minLength": 1,
        "description": "another pipeline file, whose values stand where this one has no others",
    }
    # What a file has to say, the one that it extends may.
    required = schema.pop("required")
    schema["anyOf"] = [{"required": [EXTENDS]}, {"required": required}]
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


def _component(kind: str, registry: Lookup) -> Schema:
    """A component of a kind: its bare name, or a mapping with its name and options."""
    known = registry.components(kind)
    names: list[Schema] = [
        {"const": name, "description": entry.cls.summary()} for name, entry in known.items()
    ]
    mappings = [_mapping(name, entry.cls) for name, entry in known.items()]
    others = {
        "type": "object",
        "properties": {"name": _QUALIFIED | {"not": {"enum": list(known)}}},
        "required": ["name"],
    }
    return {"anyOf": [*names, _QUALIFIED, *mappings, others]}


def _mapping(name: str, cls: type[Component]) -> Schema:
    schema = with_constant(_options(cls), "name", name)
    return {"title": name, **schema, "description": cls.summary()}


def _options(cls: type[Component]) -> Schema:
    """The options of a component, and its presets where it has some."""
    schema = object_schema(describe_options(cls))
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
