"""Wanda's importance: the weight's size times the size of its input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
from torch import Tensor

from permllm.components import Metric
from permllm.core.statistics import SEQUENCES, SQUARE_SUM, Statistic
from permllm.metrics.magnitude import absolute


@attrs.frozen
class Wanda(Metric):
    """The weight's absolute value times its input's norm (arXiv 2306.11695, eq. 1)."""

    name: ClassVar[str] = "wanda"
    needs: ClassVar[tuple[Statistic, ...]] = (SQUARE_SUM,)

    def scores(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """``|W_ij| · ‖X_j‖₂``, ``[C_out, C_in]``, in float32 or better."""
        size = absolute(weight)
        return size * input_norms(statistics, size)


def input_norms(statistics: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """``‖X_j‖₂`` per input channel: ``[C_in]``, of ``like``'s type.

    Of a mean sequence where the statistics say how many there were, else over all tokens. The
    published codes average, too (``scaler_row``). No mask depends on it, but a softmax over
    scores does, which would grow harder with the calibration.
    """
    squares = statistics[SQUARE_SUM.name].to(like)
    if SEQUENCES in statistics:
        squares = squares / statistics[SEQUENCES].to(like)
    return squares.sqrt()
