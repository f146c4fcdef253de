"""Documents to pipelines and their resolved plain data: once for each document."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import attrs

from permllm.errors import DeprecatedWarning
from permllm.pipeline.deprecations import Deprecations
from permllm.pipeline.document import Document
from permllm.pipeline.lookup import Lookup
from permllm.pipeline.schema import Pipeline
from permllm.pipeline.structuring import Structurer
from permllm.pipeline.unstructuring import registry_writer, resolved


@attrs.frozen(eq=False)
class Resolved:
    """A document with what it means.

    Attributes:
        document: what was read.
        pipeline: what it is.
        plain: the same as plain data with every default spelled out.
    """

    document: Document
    pipeline: Pipeline
    plain: dict[str, Any]


class Resolver:
    """Resolves the documents that come from one file.

    Args:
        registry: where components are looked up.
        base_dir: the folder that relative paths start from.

    Attributes:
        structurer: makes their parts.
    """

    def __init__(self, registry: Lookup, base_dir: Path) -> None:
        self.structurer = Structurer(registry, base_dir)
        self._writer = registry_writer(registry)
        self._deprecations = Deprecations()

    def resolve(self, document: Document) -> Resolved:
        """What a document means; warns of deprecated options, of each place once.

        Raises:
            UserError: the first thing in it that is wrong, at its place.
        """
        pipeline = self.structurer.structure(document, Pipeline)
        for message in self._deprecations.new(document, pipeline):
            warnings.warn(message, DeprecatedWarning, stacklevel=1)
        return Resolved(document, pipeline, resolved(pipeline, converter=self._writer))
