"""``matrix:``: one run for each combination of values at dotted keys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from permllm.pipeline.deprecations import warn_of_deprecated
from permllm.pipeline.document import Document, Keys, Origin, plain_document
from permllm.pipeline.labels import combination_labels, single_label
from permllm.pipeline.schema import Pipeline
from permllm.pipeline.settings import MATRIX, place_value
from permllm.pipeline.structuring import structure
from permllm.pipeline.unstructuring import resolved
from permllm.registry import Registry

MAX_CELLS = 1000
"""The most runs that one file may ask for."""

FIXED = (
    "permllm",
    "name",
    "model",
    "plugins",
    "evaluate",
    "export",
    "track",
    "matrix",
    "device",
    "dtype",
)
"""Keys that all runs of a file share, since they are compared with one dense model."""


@attrs.frozen
class Cell:
    """One run of a matrix.

    Attributes:
        label: the values that tell it apart from the other runs.
        options: the dotted keys that the matrix set, with resolved plain values.
        pipeline: the pipeline with these values, and no matrix.
        setting: the label that all repeats of one setting share.
        repeat: which repeat of its setting it is, from 0.
    """

    label: str
    options: dict[str, Any]
    pipeline: Pipeline
    setting: str = attrs.field(default=attrs.Factory(lambda self: self.label, takes_self=True))
    repeat: int = 0


def expand(pipeline: Pipeline, registry: Registry) -> tuple[Cell, ...]:
    """The runs of a pipeline: one without a matrix, else one per combination.

    The first key of the matrix changes slowest.
    """
    if not pipeline.matrix:
        label = single_label(pipeline.layers.permutation.name, pipeline.layers.pruner.name)
        return (Cell(label, {}, attrs.evolve(pipeline, matrix=None)),)
    document = plain_document(resolved(pipeline, registry), Origin(file=pipeline.name))
    labels = combination_labels(pipeline.matrix)
    return tuple(
        Cell(label, _chosen(pipeline.matrix, place), structure(cell, Pipeline, registry, Path()))
        for label, (place, cell) in zip(labels, cell_documents(document), strict=True)
    )


def check_axes(document: Document) -> None:
    """Refuse a ``matrix:`` that is no mapping of dotted keys to lists of distinct values.

    Raises:
        UserError: at the place of what is wrong.
    """
    axes = document.data.get(MATRIX)
    if axes is None:
        return
    if not isinstance(axes, dict):
        raise document.origin((MATRIX,)).error("the matrix must map dotted keys to lists")
    for key, values in axes.items():
        _check_axis(document, key, values)
    if (cells := math.prod(len(values) for values in axes.values())) > MAX_CELLS:
        raise document.origin((MATRIX,), key=True).error(
            f"the matrix has {cells} combinations; {MAX_CELLS} are the most"
        )


def _check_axis(document: Document, key: str, values: Any) -> None:
    place = (MATRIX, key)
    at_key = document.origin(place, key=True)
    if not all(key.split(".")):
        raise at_key.error(f"'{key}' is no dotted key", "such as layers.permutation")
    if key.split(".")[0] in FIXED:
        raise at_key.error(
            f"'{key}' cannot vary, since all runs are compared with one dense model",
            "write one pipeline file for each value, or give it with --set",
        )
    if not isinstance(values, list) or not values:
        raise document.origin(place).error(
            f"the matrix needs a list of values for '{key}'", f"for example {key}: [a, b]"
        )


def base_document(document: Document) -> Document:
    """The document without its matrix; keys that only the matrix has get the first values."""
    base = document.without(MATRIX)
    for key in document.data.get(MATRIX) or {}:
        place: Keys = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        if not base.holds(place):
            first = document.part((MATRIX, key, 0))
            base = place_value(base, key, first, document.origin((MATRIX, key), key=True))
    return base


def cell_documents(document: Document) -> Iterator[tuple[tuple[int, ...], Document]]:
    """The document of every combination, with the index of the value of each key."""
    axes = document.data[MATRIX]
    base = base_document(document)
    for place in itertools.product(*(range(len(values)) for values in axes.values())):
        cell = base
        for key, index in zip(axes, place, strict=True):
            value = document.part((MATRIX, key, index))
            cell = place_value(cell, key, value, document.origin((MATRIX, key), key=True))
        yield place, cell


def resolved_axes(document: Document, registry: Registry, base_dir: Path) -> dict[str, Any]:
    """The matrix with every default of its values spelled out; checks every combination.

    Raises:
        UserError: a value does not fit, or is there twice; at the value's place.
    """
    axes: dict[str, list[Any]] = {
        key: [None] * len(values) for key, values in document.data[MATRIX].items()
    }
    for place, cell in cell_documents(document):
        pipeline = structure(cell, Pipeline, registry, base_dir)
        warn_of_deprecated(cell, pipeline)
        plain = resolved(pipeline, registry)
        for key, index in zip(axes, place, strict=True):
            if sum(place) == index:
                axes[key][index] = _value_at(plain, key, document.data[MATRIX][key][index])
    for key, values in axes.items():
        for index, value in enumerate(values):
            if value in values[:index]:
                raise document.origin((MATRIX, key, index)).error(
                    f"the matrix has this value of '{key}' twice"
                )
    return axes


def _value_at(data: Any, key: str, written: Any) -> Any:
    for part in key.split("."):
        if isinstance(data, dict) and part not in data:
            # A deprecated option that has its default.
            return written
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data


def _chosen(axes: Mapping[str, Any], place: tuple[int, ...]) -> dict[str, Any]:
    return {key: axes[key][index] for key, index in zip(axes, place, strict=True)}
