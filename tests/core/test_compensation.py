"""The factor is that of the inverse; what is settled changes what comes after it as it should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.compensation import ATTEMPTS, inverse_factor, settle_block


def gram_of(seed: int, channels: int, dead: set[int] = frozenset()) -> Tensor:
    """Of inputs whose channels are correlated, some of which never fire."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    inputs = torch.randn(300, channels, generator=generator, dtype=torch.float64) @ mix
    inputs[:, list(dead)] = 0
    return inputs.T @ inputs


@settings(max_examples=25)
@given(
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.01, 3.0]),
    st.sets(st.integers(0, 15), max_size=16),
    st.sampled_from([1.0, 1e-6]),
)
def test_the_factor_is_that_of_the_inverse(
    seed: int, dampening: float, dead: set[int], scale: float
) -> None:
    """Channels that never fired count with the mean of the others' diagonal, or with 1."""
    gram = scale * gram_of(seed, 16, dead)
    diagonal = gram.diagonal()
    mean = diagonal[diagonal > 0].mean() if len(dead) < 16 else torch.tensor(1.0)
    whole = gram + torch.diag((diagonal == 0) * mean)
    damped = whole + dampening * mean * torch.eye(16, dtype=torch.float64)
    factor = inverse_factor(gram, dampening, "a test")
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(16, dtype=torch.float64))
    assert torch.equal(factor, factor.triu())


@pytest.mark.parametrize(("dampening", "least"), [(0.0, 1e-6), (1e-4, 1e-4)])
def test_dampening_is_raised_tenfold_until_there_is_a_factor(
    dampening: float, least: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    for raises in range(1, ATTEMPTS + 1):
        # What is missing is between the last dampening that fails and the first that does not.
        values = torch.ones(6, dtype=torch.float64)
        values[0] = -5 * least * 10.0 ** (raises - 1)
        gram = basis @ torch.diag(values / values.mean()) @ basis.T
        damped = gram + least * 10**raises * torch.eye(6, dtype=torch.float64)
        factor = inverse_factor(gram, dampening, "a test")
        torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped))


@given(st.integers(0, 1000), st.integers(1, 12), st.sampled_from([1, 3, 5, 12]))
def test_later_columns_become_the_best_that_they_can(seed: int, settled: int, step: int) -> None:
    """Those left are least squares given those settled; so it is after every column."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    final = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    gram = gram_of(seed, 12)
    factor = inverse_factor(gram, 0.0, "a test")
    columns = weight.T.contiguous()
    for start in range(0, settled, step):
        block = slice(start, min(start + step, settled))
        settle_block(columns, factor, block, lambda j: final[:, j])
    left = slice(settled, 12)
    change = final[:, :settled] - weight[:, :settled]
    # The gradient of the output's error in the columns that are left is zero.
    best = -change @ gram[:settled, left] @ torch.linalg.pinv(gram[left, left])
    torch.testing.assert_close(columns.T[:, :settled], final[:, :settled])
    torch.testing.assert_close(columns.T[:, left], weight[:, left] + best, rtol=1e-6, atol=1e-6)


def test_columns_in_the_block_are_up_to_date_when_one_is_settled() -> None:
    columns = torch.ones(3, 2, dtype=torch.float64)
    factor = torch.tensor([[1.0, 0.5, 0.25], [0, 1, 0.5], [0, 0, 1]], dtype=torch.float64)
    met = []

    def zero(j: int) -> Tensor:
        met.append(columns[j].clone())
        return torch.zeros(2, dtype=torch.float64)

    settle_block(columns, factor, slice(0, 3), zero)
    assert [one.tolist() for one in met] == [[1, 1], [0.5, 0.5], [0.5, 0.5]]
