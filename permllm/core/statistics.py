"""Statistics of a linear layer's inputs, as sums over tokens.

A statistic is a function of a batch of inputs whose results add up: batches may
come in any order, and partial sums from several processes may be added. Metrics,
learners and pruners name the statistics that they need; nothing else is gathered.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from permllm.core.precision import upcast


@attrs.frozen
class Statistic:
    """A sum over tokens of a function of the inputs.

    Attributes:
        name: the key under which components find the sum.
        partial: maps inputs ``[tokens, C_in]`` to this batch's share of the sum,
            in float32 or better.
        channel_axes: how many leading axes of the sum run over input channels, so
            that the sum can follow a permutation of the channels.
    """

    name: str
    partial: Callable[[Tensor], Tensor]
    channel_axes: int = 1

    def permuted(self, total: Tensor, permutation: Tensor) -> Tensor:
        """The sum that the inputs ``x[..., permutation]`` would have given.

        Args:
            total: the sum for the inputs in their original order.
            permutation: ``LongTensor[C_in]``.
        """
        for axis in range(self.channel_axes):
            total = total.index_select(axis, permutation)
        return total


TOKENS = Statistic("tokens", lambda x: torch.tensor(float(x.shape[0])), channel_axes=0)
"""How many tokens reached the linear: a scalar."""

SQUARE_SUM = Statistic("square_sum", lambda x: upcast(x).square().sum(0))
"""``Σ x_j²`` per input channel, ``[C_in]``: the square of Wanda's ``‖X_j‖₂``."""

SEQUENCES = "sequences"
"""The name under which components find how many sequences the sums are over, in a run."""

GRAM = Statistic("gram", lambda x: upcast(x).T @ upcast(x), channel_axes=2)
"""``Σ x xᵀ``, ``[C_in, C_in]``: SparseGPT's Hessian before dampening."""
