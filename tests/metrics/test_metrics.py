from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from permllm.components import Metric
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert
from permllm.core.statistics import SQUARE_SUM
from permllm.metrics.magnitude import Magnitude
from permllm.metrics.ria import Ria
from permllm.metrics.wanda import Wanda
from permllm.testing import check_metric

METRICS = [Magnitude(), Wanda(), Ria(), Ria(exponent=0), Ria(exponent=2)]


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_contract(metric: Metric) -> None:
    check_metric(metric)


def linear(seed: int, rows: int = 6, channels: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    inputs = torch.randn(40, channels, generator=generator, dtype=torch.float64)
    return weight, inputs


def test_the_definitions() -> None:
    weight, inputs = linear(0)
    sums = {"square_sum": SQUARE_SUM.partial(inputs)}
    norms = inputs.norm(dim=0)
    size = weight.abs()
    shares = size / size.sum(0, keepdim=True) + size / size.sum(1, keepdim=True)
    torch.testing.assert_close(Magnitude().scores(weight, {}), size)
    torch.testing.assert_close(Wanda().scores(weight, sums), size * norms)
    torch.testing.assert_close(Ria().scores(weight, sums), shares * norms.sqrt())
    torch.testing.assert_close(Ria(exponent=2).scores(weight, sums), shares * norms**2)


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_scaling_a_row_does_not_change_the_wanda_mask(seed: int, factor: float) -> None:
    weight, inputs = linear(seed)
    sums = {"square_sum": SQUARE_SUM.partial(inputs)}
    scaled = weight.clone()
    scaled[2] *= factor
    one, two = (nm_mask(Wanda().scores(w, sums), Pattern(2, 4)) for w in (weight, scaled))
    assert torch.equal(one, two)


@given(st.integers(0, 1000), st.sampled_from(METRICS))
def test_permuting_the_channels_permutes_the_scores(seed: int, metric: Metric) -> None:
    weight, inputs = linear(seed)
    permutation = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))
    total = SQUARE_SUM.partial(inputs)
    moved = metric.scores(
        weight[:, permutation], {"square_sum": SQUARE_SUM.permuted(total, permutation)}
    )
    scores = metric.scores(weight, {"square_sum": total})
    torch.testing.assert_close(moved[:, invert(permutation)], scores)


def test_rows_and_columns_of_zeros_score_zero() -> None:
    weight, inputs = linear(0)
    weight[1], weight[:, 3], inputs[:, 5] = 0, 0, 0
    scores = Ria().scores(weight, {"square_sum": SQUARE_SUM.partial(inputs)})
    assert scores.isfinite().all()
    assert scores[1].sum() == scores[:, 3].sum() == scores[:, 5].sum() == 0
