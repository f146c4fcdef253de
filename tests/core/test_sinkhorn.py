"""Sinkhorn's result is nearly doubly stochastic, whatever the logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permllm.core.assignment import assign_blocks
from permllm.core.sinkhorn import sinkhorn

F64 = torch.float64


def random_logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 3))
def test_rows_and_columns_sum_to_one(seed: int, size: int, blocks: int) -> None:
    soft = sinkhorn(random_logits(seed, blocks, size, size), 1.0, 200)
    ones = torch.ones(blocks, size, dtype=F64)
    assert (soft >= 0).all()
    torch.testing.assert_close(soft.sum(-2), ones)
    torch.testing.assert_close(soft.sum(-1), ones, atol=1e-3, rtol=0)


@settings(max_examples=40)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1e-3, 0.1, 1.0]),
    st.sampled_from([torch.float32, F64]),
)
def test_huge_logits_give_finite_values_and_gradients(
    seed: int, temperature: float, dtype: torch.dtype
) -> None:
    logits = (random_logits(seed, 2, 6, 6).clamp(-1, 1) * 1e4).to(dtype).requires_grad_()
    soft = sinkhorn(logits, temperature, 5)
    assert torch.isfinite(soft).all()
    assert (soft >= 0).all()
    torch.testing.assert_close(soft.sum(-2), torch.ones_like(soft[:, 0]))
    (gradient,) = torch.autograd.grad(soft.square().sum(), logits)
    assert torch.isfinite(gradient).all()


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from([0.3, 1.0, 5.0]))
def test_equals_the_plain_formulation(seed: int, size: int, temperature: float) -> None:
    logits = random_logits(seed, size, size)
    plain = (logits / temperature).exp()
    for _ in range(5):
        plain = plain / plain.sum(1, keepdim=True)
        plain = plain / plain.sum(0, keepdim=True)
    torch.testing.assert_close(sinkhorn(logits, temperature, 5), plain)


def test_gradient() -> None:
    logits = random_logits(0, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sinkhorn(x, 0.7, 3), (logits,))


@pytest.mark.parametrize("seed", range(5))
def test_tends_to_the_assignment_as_temperature_falls(seed: int) -> None:
    logits = random_logits(seed, 3, 5, 5)
    soft = sinkhorn(logits, 0.01, 500)
    assert torch.equal(soft.argmax(-1), assign_blocks(logits))


def test_shifting_rows_or_columns_changes_nothing() -> None:
    logits = random_logits(1, 4, 4)
    shifted = logits + random_logits(2, 4, 1)
    torch.testing.assert_close(sinkhorn(shifted, 1.0, 5), sinkhorn(logits, 1.0, 5))
