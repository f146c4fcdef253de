"""Importance metrics: how much each weight of a linear matters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from permllm.hooks import hookimpl

if TYPE_CHECKING:
    from permllm.components import Metric


@hookimpl
def permllm_metrics() -> Iterable[type[Metric]]:
    """The built-in metrics."""
    from permllm.metrics.magnitude import Magnitude
    from permllm.metrics.ria import Ria
    from permllm.metrics.wanda import Wanda

    return [Magnitude, Wanda, Ria]
