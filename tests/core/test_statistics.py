"""Statistics add up over batches, and follow a permutation of the channels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.statistics import GRAM, SQUARE_SUM, TOKENS, Statistic

ALL = [TOKENS, SQUARE_SUM, GRAM]


def by_token(name: str, inputs: Tensor) -> Tensor:
    """The definition, one token after another."""
    if name == "tokens":
        return torch.tensor(float(len(inputs)))
    each = [x * x if name == "square_sum" else torch.outer(x, x) for x in inputs]
    return torch.stack(each).sum(0)


@settings(max_examples=30)
@given(st.sampled_from(ALL), st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 5))
def test_sums_over_batches_are_those_over_all_tokens(
    statistic: Statistic, seed: int, first: int, second: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    batches = [torch.randn(n, 4, generator=rng, dtype=torch.float64) for n in (first, second)]
    total = statistic.partial(batches[0]) + statistic.partial(batches[1])
    torch.testing.assert_close(total, by_token(statistic.name, torch.cat(batches)))


@settings(max_examples=30)
@given(st.sampled_from(ALL), st.integers(0, 2**31))
def test_a_sum_follows_a_permutation_of_the_channels(statistic: Statistic, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(5, 6, generator=rng, dtype=torch.float64)
    permutation = torch.randperm(6, generator=rng)
    moved = statistic.permuted(statistic.partial(inputs), permutation)
    torch.testing.assert_close(moved, statistic.partial(inputs[:, permutation]))


@pytest.mark.parametrize("statistic", ALL, ids=lambda statistic: statistic.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sums_are_in_float32_or_better(statistic: Statistic, dtype: torch.dtype) -> None:
    total = statistic.partial(torch.ones(1000, 2, dtype=dtype))
    expected = torch.float64 if dtype == torch.float64 and statistic is not TOKENS else None
    assert total.dtype == (expected or torch.float32)
    assert (total == 1000).all()  # which bfloat16 is not able to count to


def test_a_statistic_is_by_channel_unless_it_says_otherwise() -> None:
    largest = Statistic("largest", lambda x: x.abs().amax(0))
    assert largest.channel_axes == 1
    assert largest.permuted(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1, 2, 0])).tolist() == [
        1.0,
        2.0,
        3.0,
    ]
