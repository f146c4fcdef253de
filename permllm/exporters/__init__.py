"""Exporters: how a pruned model is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from permllm.hooks import hookimpl

if TYPE_CHECKING:
    from permllm.components import Exporter


@hookimpl
def permllm_exporters() -> Iterable[type[Exporter]]:
    """The built-in exporters."""
    from permllm.exporters.masked import Masked
    from permllm.exporters.permuted import Permuted
    from permllm.exporters.sparse import Sparse

    return [Masked, Permuted, Sparse]
