from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.patterns import Pattern, nm_mask
from permllm.core.statistics import SEQUENCES, SQUARE_SUM
from permllm.metrics.ria import Ria
from permllm.metrics.wanda import Wanda


def test_a_score_is_the_weights_size_times_its_inputs(
    linear: Callable[[int], tuple[Tensor, Tensor]],
) -> None:
    weight, inputs = linear(0)
    scores = Wanda().scores(weight, {"square_sum": SQUARE_SUM.partial(inputs)})
    assert Wanda.needs == (SQUARE_SUM,)
    torch.testing.assert_close(scores, weight.abs() * inputs.norm(dim=0))


def test_statistics_take_the_precision_of_the_weight() -> None:
    sums = {"square_sum": torch.full((8,), 2.0, dtype=torch.float64)}
    assert Wanda().scores(torch.ones(2, 8), sums).dtype == torch.float32
    assert Wanda().scores(torch.ones(2, 8, dtype=torch.float64), sums).dtype == torch.float64


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_scaling_a_row_does_not_change_the_mask(
    linear: Callable[[int], tuple[Tensor, Tensor]], seed: int, factor: float
) -> None:
    weight, inputs = linear(seed)
    sums = {"square_sum": SQUARE_SUM.partial(inputs)}
    scaled = weight.clone()
    scaled[2] *= factor
    one, two = (nm_mask(Wanda().scores(w, sums), Pattern(2, 4)) for w in (weight, scaled))
    assert torch.equal(one, two)


@given(st.integers(0, 1000), st.integers(1, 40), st.floats(0.1, 1))
def test_where_sequences_are_counted_norms_are_the_published_codes_running_average(
    seed: int, sequences: int, exponent: float
) -> None:
    """``scaler_row`` of the published code: updated with each sequence, read as a square."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    inputs = torch.randn(sequences, 5, 8, generator=generator, dtype=torch.float64)
    scaler_row = torch.zeros(8, dtype=torch.float64)
    for seen, sequence in enumerate(inputs):
        scaler_row *= seen / (seen + 1)
        scaler_row += sequence.T.norm(dim=1) ** 2 / (seen + 1)
    sums = {
        SQUARE_SUM.name: SQUARE_SUM.partial(inputs.flatten(0, 1)),
        SEQUENCES: torch.tensor(float(sequences)),
    }
    size = weight.abs()
    torch.testing.assert_close(Wanda().scores(weight, sums), size * scaler_row.sqrt())
    relative = size / size.sum(0) + size / size.sum(1, keepdim=True)
    torch.testing.assert_close(
        Ria(exponent=exponent).scores(weight, sums), relative * scaler_row.sqrt() ** exponent
    )
