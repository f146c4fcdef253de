"""What a pipeline file asks for: a plan of runs, one for each cell of its matrix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from permllm.components import Component
from permllm.pipeline.schema import Pipeline

DENSE = "dense"
"""The label of the unpruned model's run."""


@attrs.frozen
class Run:
    """One run: the dense model's evaluation, or one pruned model.

    Attributes:
        label: ``"dense"``, or the matrix values that tell this run apart.
        pipeline: what it does, with the matrix values in place.
        options: the dotted keys and values that the matrix set.
        directory: where its windows, plots and exports go.
        setting: the label that all repeats of one setting share.
        repeat: which repeat of its setting it is, from 0.
    """

    label: str
    pipeline: Pipeline
    options: dict[str, Any]
    directory: Path
    setting: str = attrs.field(default=attrs.Factory(lambda self: self.label, takes_self=True))
    repeat: int = 0


@attrs.frozen
class Plan:
    """All runs of a pipeline file.

    Attributes:
        pipeline: the file's pipeline, without the matrix applied.
        runs: the pruned runs in the order of the matrix; the dense run comes before.
        dense: the dense model's run.
        out: the folder of the whole pipeline's run.
    """

    pipeline: Pipeline
    runs: tuple[Run, ...]
    dense: Run
    out: Path


def components_in(value: Any) -> Iterator[Component]:
    """Every component in a pipeline, those that are options of others included."""
    if isinstance(value, Component):
        yield value
    if attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            yield from components_in(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from components_in(item)
