"""The contract of metrics lets good ones pass, and says what is wrong with bad ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor

from permllm.components import Metric
from permllm.testing import check_metric


@attrs.frozen(eq=False)
class AnyMetric(Metric):
    """Scores by a function."""

    name: ClassVar[str] = "any"
    function: Any

    def scores(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        return self.function(weight)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w: w.float(), "must not be negative"),
        (lambda w: w.abs().float().sum(1), "must have its shape"),
        (lambda w: 1 / w.abs().float(), "must be finite"),
        (lambda w: w.abs(), r"float32 or better, not torch\.bfloat16"),
        (lambda w: w.abs().float() + torch.rand(w.shape), "must not vary"),
        (lambda w: w.abs_().float(), "must leave the weight as it is"),
    ],
)
def test_bad_metrics(function: Callable[[Tensor], Tensor], message: str, fails) -> None:
    check_metric(AnyMetric(lambda w: w.abs().float()))
    fails(check_metric, AnyMetric(function), f"metric 'any': .*{message}")
