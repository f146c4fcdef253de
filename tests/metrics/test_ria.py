from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from permllm.core.statistics import SQUARE_SUM
from permllm.metrics.ria import Ria

Linear = Callable[[int], tuple[Tensor, Tensor]]


def by_entry(weight: Tensor, inputs: Tensor, exponent: float) -> Tensor:
    """The definition, one entry after another; shares of nothing are zero."""
    scores = torch.zeros_like(weight)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            row, column = float(weight[i].abs().sum()), float(weight[:, j].abs().sum())
            size, norm = abs(float(weight[i, j])), float(inputs[:, j].square().sum()) ** 0.5
            share = (size / row if row else 0.0) + (size / column if column else 0.0)
            scores[i, j] = share * norm**exponent
    return scores


@pytest.mark.parametrize("exponent", [0.5, 0.0, 2.0])
def test_a_score_is_the_share_of_row_and_column_times_the_inputs_power(
    linear: Linear, exponent: float
) -> None:
    weight, inputs = linear(0)
    scores = Ria(exponent=exponent).scores(weight, {"square_sum": SQUARE_SUM.partial(inputs)})
    assert Ria.needs == (SQUARE_SUM,)
    torch.testing.assert_close(scores, by_entry(weight, inputs, exponent))


def test_a_square_root_is_the_default(linear: Linear) -> None:
    weight, inputs = linear(1)
    scores = Ria().scores(weight, {"square_sum": SQUARE_SUM.partial(inputs)})
    torch.testing.assert_close(scores, by_entry(weight, inputs, 0.5))


def test_small_weights_have_the_shares_of_large_ones(linear: Linear) -> None:
    """No constant is added to the sums."""
    weight, inputs = linear(2)
    sums = {"square_sum": SQUARE_SUM.partial(inputs)}
    torch.testing.assert_close(Ria().scores(weight * 1e-9, sums), Ria().scores(weight, sums))


def test_statistics_take_the_precision_of_the_weight() -> None:
    sums = {"square_sum": torch.full((8,), 2.0, dtype=torch.float64)}
    assert Ria().scores(torch.ones(2, 8), sums).dtype == torch.float32
    assert Ria().scores(torch.ones(2, 8, dtype=torch.float64), sums).dtype == torch.float64


def test_rows_and_columns_of_zeros_score_zero(linear: Linear) -> None:
    weight, inputs = linear(0)
    weight[1], weight[:, 3], inputs[:, 5] = 0, 0, 0
    scores = Ria().scores(weight, {"square_sum": SQUARE_SUM.partial(inputs)})
    torch.testing.assert_close(scores, by_entry(weight, inputs, 0.5))
    assert scores[1].sum() == scores[:, 3].sum() == scores[:, 5].sum() == 0
