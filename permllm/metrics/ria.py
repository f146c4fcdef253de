"""RIA's importance: the weight's share of its row and of its column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
from torch import Tensor

from permllm.components import Metric
from permllm.core.statistics import SQUARE_SUM, Statistic
from permllm.metrics.magnitude import absolute
from permllm.metrics.wanda import input_norms
from permllm.option import option


@attrs.frozen
class Ria(Metric):
    """Relative importance and activations (Plug-and-Play, ICLR 2024, eq. 3 and 4)."""

    name: ClassVar[str] = "ria"
    needs: ClassVar[tuple[Statistic, ...]] = (SQUARE_SUM,)

    exponent: float = option(0.5, help="exponent a of the input's norm", minimum=0, maximum=8)

    def scores(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """``(|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · ‖X_j‖₂^a``, ``[C_out, C_in]``.

        In float32 or better; zero in rows and columns of zeros.
        """
        size = absolute(weight)
        shares = _shares(size, axis=0) + _shares(size, axis=1)
        return shares * input_norms(statistics, size) ** self.exponent


def _shares(size: Tensor, axis: int) -> Tensor:
    """Each entry's share of the sum along an axis; zero where the sum is."""
    total = size.sum(axis, keepdim=True)
    return size / total.where(total > 0, total.new_ones(()))
