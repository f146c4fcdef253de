"""What all metrics have in common."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from permllm.components import Metric
from permllm.core.permutations import invert
from permllm.core.statistics import SQUARE_SUM
from permllm.metrics import permllm_metrics
from permllm.metrics.magnitude import Magnitude
from permllm.metrics.ria import Ria
from permllm.metrics.wanda import Wanda
from permllm.testing import check_metric

METRICS = [Magnitude(), Wanda(), Ria(), Ria(exponent=0), Ria(exponent=2)]


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_contract(metric: Metric) -> None:
    check_metric(metric)


def test_built_in_metrics_come_through_the_hook() -> None:
    assert [metric.name for metric in permllm_metrics()] == ["magnitude", "wanda", "ria"]


@given(st.integers(0, 1000), st.sampled_from(METRICS))
def test_permuting_the_channels_permutes_the_scores(
    linear: Callable[[int], tuple[Tensor, Tensor]], seed: int, metric: Metric
) -> None:
    weight, inputs = linear(seed)
    permutation = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))
    total = SQUARE_SUM.partial(inputs)
    moved = metric.scores(
        weight[:, permutation], {"square_sum": SQUARE_SUM.permuted(total, permutation)}
    )
    scores = metric.scores(weight, {"square_sum": total})
    torch.testing.assert_close(moved[:, invert(permutation)], scores)
