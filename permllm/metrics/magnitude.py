"""Importance as the weight's size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
from torch import Tensor

from permllm.components import Metric
from permllm.core.precision import upcast


@attrs.frozen
class Magnitude(Metric):
    """The weight's absolute value."""

    name: ClassVar[str] = "magnitude"

    def scores(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """``|W|``, ``[C_out, C_in]``, in float32 or better."""
        return absolute(weight)


def absolute(weight: Tensor) -> Tensor:
    """``|W|`` in float32, or in float64 if the weight is."""
    return upcast(weight.abs())
