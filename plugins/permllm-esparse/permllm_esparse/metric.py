"""E-Sparse's importance: the weight's size times the information and size of its input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from permllm.components import Metric, option
from permllm.core.statistics import SQUARE_SUM, TOKENS, Statistic
from permllm_esparse.entropy import channel_entropy
from permllm_esparse.histogram import HISTOGRAM


@attrs.frozen
class ESparse(Metric):
    """The weight's absolute value times its input's entropy plus norm, after arXiv 2310.15929.

    ``ξ_ij = |W_ij| · (IR_j + α · ‖X_j‖₂)``, where ``IR_j = -Σ_k p_k log p_k`` is the
    information entropy of input channel j over K equal intervals of its range. α is
    the option ``amplitude``. That these three go into the metric is the paper's; how they
    are put together, K and α are guesses, which the README lists. The entropy comes from
    a histogram on fixed bins that is gathered in one pass (:mod:`permllm_esparse.entropy`).

    A channel that says nothing, because it never fires or no token reached it, keeps a
    trace of importance, so that its weights are ranked by their size.
    """

    name: ClassVar[str] = "esparse"
    needs: ClassVar[tuple[Statistic, ...]] = (HISTOGRAM, SQUARE_SUM, TOKENS)

    bins: int = option(
        100, help="equal intervals of a channel's range for its entropy", minimum=2, maximum=10_000
    )
    amplitude: float = option(
        1.0,
        help="weight of the input's norm beside its entropy; 0 for the entropy alone",
        minimum=0,
        maximum=1e6,
    )
    norm: str = option(
        "l2",
        help="the input's norm: l2 over all calibration tokens, which grows with their number, "
        "or their root mean square (rms), which does not",
        choices=("l2", "rms"),
    )

    def scores(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """``|W_ij| · (IR_j + α · ‖X_j‖₂)``, ``[C_out, C_in]``, in float32 or better."""
        size = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
        return size * self.importance(statistics).to(size)

    def importance(self, statistics: Mapping[str, Tensor]) -> Tensor:
        """``IR_j + α · ‖X_j‖₂`` of every input channel: ``float64[C_in]``, positive."""
        information = channel_entropy(statistics[HISTOGRAM.name], self.bins)
        squares = statistics[SQUARE_SUM.name].to(information)
        if self.norm == "rms":
            # Where no token came, the sum of squares stands for one token of white noise.
            squares = squares / statistics[TOKENS.name].to(squares).clamp_min(1)
        return with_trace(information + self.amplitude * squares.sqrt())


def with_trace(importance: Tensor) -> Tensor:
    """The importance of channels, at least float32's epsilon of the greatest.

    That is too little to win against a channel that says something, and enough to tell
    large weights from small ones within a channel's group. Where all are zero, all
    become one.

    Args:
        importance: ``[C_in]``, non-negative.
    """
    greatest = importance.max()
    if greatest == 0:
        return torch.ones_like(importance)
    return importance.clamp_min(torch.finfo(torch.float32).eps * greatest.item())
