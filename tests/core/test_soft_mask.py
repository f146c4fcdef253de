"""Soft masks are held to their definition, solved by bisection in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

from permllm.core import soft_mask as module
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert
from permllm.core.soft_mask import soft_mask, softly_masked

PATTERNS = [Pattern(*nm) for nm in ((2, 4), (1, 4), (3, 4), (1, 2), (6, 8), (4, 8), (8, 16))]

patterns = st.sampled_from(PATTERNS)
temperatures = st.floats(1e-3, 2)
scales = st.floats(1e-3, 5)
seeds = st.integers(0, 10_000)


def drawn(pattern: Pattern, seed: int, scale: float, rows: int = 3, groups: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, groups * pattern.m)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def brute_force(group: Tensor, n: int, temperature: float) -> Tensor:
    """The shares of one group ``[M]``."""

    def excess(theta: float) -> float:
        return float(((group - theta) / temperature).sigmoid().sum()) - n

    span = 50 * temperature
    root = brentq(excess, float(group.min()) - span, float(group.max()) + span, xtol=1e-15)
    return ((group - root) / temperature).sigmoid()


def by_groups(rows: Tensor, pattern: Pattern, temperature: float) -> Tensor:
    groups = rows.reshape(-1, pattern.m)
    return torch.stack([brute_force(one, pattern.n, temperature) for one in groups]).view_as(rows)


@given(patterns, seeds, scales, temperatures)
def test_shares_are_those_of_the_definition(
    pattern: Pattern, seed: int, scale: float, temperature: float
) -> None:
    logits = drawn(pattern, seed, scale)
    expected = by_groups(logits, pattern, temperature)
    torch.testing.assert_close(soft_mask(logits, pattern, temperature), expected, rtol=0, atol=1e-6)
    narrow = soft_mask(logits.float(), pattern, temperature).double()
    expected = by_groups(logits.float().double(), pattern, temperature)
    torch.testing.assert_close(narrow, expected, rtol=0, atol=3e-3)


@given(patterns, seeds)
def test_a_cold_mask_is_the_hard_one(pattern: Pattern, seed: int) -> None:
    logits = drawn(pattern, seed, 1.0)
    steps = logits.reshape(-1, pattern.m).argsort(-1).argsort(-1).double().view_as(logits)
    torch.testing.assert_close(
        soft_mask(steps, pattern, 0.01), nm_mask(steps, pattern).double(), rtol=0, atol=1e-9
    )


def test_equal_logits_are_kept_alike() -> None:
    equal = torch.full((2, 8), 0.7)
    torch.testing.assert_close(soft_mask(equal, Pattern(3, 8), 0.1), torch.full((2, 8), 3 / 8))
    with pytest.raises(ValueError, match="does not fit 8 channels"):
        soft_mask(equal, Pattern(1, 3), 0.1)


@given(patterns, seeds, st.floats(0.05, 1))
def test_gradients_are_those_of_the_definition(
    pattern: Pattern, seed: int, temperature: float
) -> None:
    """Of a random linear function of the masked weight, against central differences."""
    logits = drawn(pattern, seed, 0.3, rows=2, groups=2)
    generator = torch.Generator().manual_seed(seed + 1)
    weight, slope = (
        torch.randn(logits.shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    permutation = torch.randperm(logits.shape[1], generator=generator)
    inverse = invert(permutation)

    def value(at: Tensor) -> float:
        mask = by_groups(at, pattern, temperature).index_select(1, inverse)
        return float((slope * weight * mask).sum())

    leaf = logits.clone().requires_grad_()
    masked = softly_masked(leaf, weight, permutation, pattern, temperature)
    assert float((slope * masked.detach()).sum()) == pytest.approx(value(logits), abs=1e-5)
    (slope * masked).sum().backward()
    assert leaf.grad is not None
    for place in range(0, logits.numel(), max(1, logits.numel() // 12)):
        step = torch.zeros_like(logits).flatten()
        step[place] = 1e-5
        change = step.view_as(logits)
        expected = (value(logits + change) - value(logits - change)) / 2e-5
        assert float(leaf.grad.flatten()[place]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_rows_are_worked_on_in_chunks_and_nothing_given_is_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, pattern = drawn(PATTERNS[0], 3, 0.5, rows=5, groups=1).float(), PATTERNS[0]
    weight, order = torch.rand(5, 4, dtype=torch.bfloat16), torch.tensor([2, 0, 3, 1])

    def made() -> tuple[Tensor, Tensor]:
        leaf = logits.clone().requires_grad_()
        masked = softly_masked(leaf, weight, order, pattern, 0.2)
        masked.float().sum().backward()
        assert torch.equal(leaf.detach(), logits)
        assert leaf.grad is not None
        return masked.detach(), leaf.grad

    whole = made()
    assert whole[0].dtype == torch.bfloat16
    monkeypatch.setattr(module, "CHUNK", {"cpu": 1})
    for one, other in zip(made(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
