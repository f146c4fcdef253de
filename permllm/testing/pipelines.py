"""Pipeline files, as tests of a plugin read those that its README shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from permllm.pipeline.document import Origin
from permllm.pipeline.parsing import parse_yaml
from permllm.pipeline.reading import read_mapping
from permllm.pipeline.schema import Pipeline
from permllm.registry import Registry

_MADE_UP: dict[str, Any] = {"model": {"source": "directory", "path": "."}, "pattern": "2:4"}
"""What every pipeline file has to say, for parts of one that do not."""


def read_pipeline(shown: str | Mapping[str, Any], folder: Path | None = None) -> Pipeline:
    """What a pipeline file asks for, or a part of one, with the installed plugins.

    The result has the file's keys as attributes and components made, so that a component of
    any package is had without importing its module::

        pruner = read_pipeline("layers: {pruner: sparsegpt}").layers.pruner

    Args:
        shown: the file's text, or its keys. A model and a pattern are made up where it has none.
        folder: where relative paths start; the current folder if None.

    Raises:
        UserError: something in it is wrong.
    """
    keys = parse_yaml(shown, Origin()).data if isinstance(shown, str) else shown
    return read_mapping(_MADE_UP | dict(keys), Registry.load(), base_dir=folder)
