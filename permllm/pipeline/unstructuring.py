"""Pipelines as plain data with every default spelled out, as text, and compared."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from permllm.components import Component
from permllm.core.durations import Duration
from permllm.core.patterns import Pattern
from permllm.pipeline.deprecations import left_out
from permllm.pipeline.document import dotted, walk
from permllm.pipeline.lookup import Lookup
from permllm.pipeline.options import option_fields
from permllm.pipeline.schema import SOURCES, Pipeline

ABSENT = "(absent)"
"""What :func:`differences` shows for a key that one side lacks."""


def resolved(pipeline: Pipeline, registry: Lookup | None = None) -> dict[str, Any]:
    """Strings, numbers, lists and mappings that read back to an equal pipeline.

    Args:
        pipeline: any pipeline.
        registry: where it is given, components whose name two packages share are
            written ``package:name``.
    """
    data = _fields(pipeline, registry)
    data["track"] = {observer.pop("name"): observer for observer in data["track"]}
    return data


def to_plain(value: Any, registry: Lookup | None = None) -> Any:
    """Any part of a pipeline as plain data."""
    if isinstance(value, (Pattern, Duration, Path)):
        return str(value)
    if isinstance(value, Component):
        name = registry.reference_of(type(value)) if registry else value.name
        return {"name": name} | _fields(value, registry)
    if attrs.has(type(value)):
        tag = next((tag for tag, cls in SOURCES.items() if type(value) is cls), None)
        return ({"source": tag} if tag else {}) | _fields(value, registry)
    if isinstance(value, (tuple, list)):
        return [to_plain(item, registry) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, registry) for key, item in value.items()}
    return value


def dump_yaml(data: Any) -> str:
    """Plain data as YAML; what YAML 1.1 would take for a number of base 60 is quoted."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 10**6
    stream = io.StringIO()
    yaml.dump(_quoted(data), stream)
    return stream.getvalue()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ, as ``key: old → new``, in the order of keys."""
    before = {dotted(place): value for place, value in walk(dict(old))}
    after = {dotted(place): value for place, value in walk(dict(new))}
    return [
        f"{key}: {_shown(before, key)} → {_shown(after, key)}"
        for key in dict.fromkeys([*before, *after])
        if _shown(before, key) != _shown(after, key)
    ]


def _fields(value: Any, registry: Lookup | None) -> dict[str, Any]:
    return {
        field.alias or field.name: to_plain(getattr(value, field.name), registry)
        for field in option_fields(type(value))
        if not left_out(field, getattr(value, field.name))
    }


def _quoted(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _quoted(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_quoted(value) for value in data]
    if isinstance(data, str) and re.fullmatch(r"[\d:]+", data):
        return DoubleQuotedScalarString(data)
    return data


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else ABSENT
