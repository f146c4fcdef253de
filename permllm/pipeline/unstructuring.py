"""Pipelines as plain data with every default spelled out, as text, and compared."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from cattrs import Converter
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from permllm.fields.writing import fields_of, writer
from permllm.pipeline.lookup import Lookup
from permllm.pipeline.plain import dotted, walk
from permllm.pipeline.schema import Pipeline
from permllm.redaction import redacted

ABSENT = "(absent)"
"""What :func:`differences` shows for a key that one side lacks."""


def resolved(
    pipeline: Pipeline, registry: Lookup | None = None, converter: Converter | None = None
) -> dict[str, Any]:
    """Strings, numbers, lists and mappings that read back to an equal pipeline.

    Args:
        pipeline: any pipeline.
        registry: where it is given, components whose name two packages share are
            written ``package:name``.
        converter: what writes, made for the registry, where many pipelines are written.
    """
    data = fields_of(pipeline, converter or registry_writer(registry))
    data["track"] = {
        observer["name"]: {key: value for key, value in observer.items() if key != "name"}
        for observer in data["track"]
    }
    return data


def registry_writer(registry: Lookup | None) -> Converter:
    """What writes components by the names that a registry has for them."""
    return writer(registry.reference_of) if registry else writer()


def published(pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of a pipeline for others to read: nothing tells of this machine.

    Paths are left with their names, and who is told of a run is nobody else's affair.

    >>> published({"track": {"mlflow": {}}, "model": {"path": "/home/me/llama"}})
    {'track': {}, 'model': {'path': 'llama'}}
    """
    return {**_without_folders(pipeline), "track": {}}


def _without_folders(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _without_folders(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_without_folders(value) for value in data]
    if isinstance(data, str) and (data.startswith("file:") or _is_absolute(data)):
        return PureWindowsPath(data).name
    return data


def _is_absolute(text: str) -> bool:
    """Whether a text is a path from the root, of this system or another."""
    return any(flavour(text).is_absolute() for flavour in (PurePosixPath, PureWindowsPath))


def dump_yaml(data: Any) -> str:
    """Plain data as YAML, without the secrets of URIs.

    What YAML 1.1 would take for a number of base 60 is quoted.
    """
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 10**6
    stream = io.StringIO()
    yaml.dump(_quoted(redacted(data)), stream)
    return stream.getvalue()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ, as ``key: old → new``, in the order of keys.

    Secrets of URIs are left aside: what is written down has none.
    """
    before = {dotted(place): value for place, value in walk(redacted(dict(old)))}
    after = {dotted(place): value for place, value in walk(redacted(dict(new)))}
    return [
        f"{key}: {_shown(before, key)} → {_shown(after, key)}"
        for key in dict.fromkeys([*before, *after])
        if _shown(before, key) != _shown(after, key)
    ]


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
