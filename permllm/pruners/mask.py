"""Cuts a weight and leaves what it keeps as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
from torch import Tensor

from permllm.components import Pruner
from permllm.core.patterns import Pattern, nm_mask


@attrs.frozen
class Mask(Pruner):
    """Keeps the N weights of the highest scores of every M and does not change them."""

    name: ClassVar[str] = "mask"

    def prune(
        self, weight: Tensor, scores: Tensor, pattern: Pattern, statistics: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The masked weight and the mask, both ``[C_out, C_in]``."""
        mask = nm_mask(scores, pattern)
        return weight.masked_fill(~mask, 0), mask
