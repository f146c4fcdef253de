"""The divergence and its gradient equal those of PyTorch's own operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from permllm.core import divergence
from permllm.core.divergence import mean_kl


def by_operations(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    ours, theirs = logits.log_softmax(-1), target.log_softmax(-1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


@settings(max_examples=50)
@given(st.integers(1, 7), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([1, 3, 1000]))
def test_equals_the_same_in_operations(rows: int, size: int, seed: int, at_once: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, target = (
        5 * torch.randn(rows, size, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(divergence._AT_ONCE, "cpu", at_once * size)
        found, expected = 3 * mean_kl(ours, target), 3 * by_operations(theirs, target)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_is_zero_without_gradient_for_equal_logits_of_any_offset() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    loss = mean_kl(logits, logits + 7)
    loss.backward()
    torch.testing.assert_close(loss.item(), 0.0, atol=1e-12, rtol=0)
    torch.testing.assert_close(logits.grad, torch.zeros(4, 9, dtype=torch.float64))


def test_rounds_the_gradient_of_bfloat16_only_at_the_end() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = (torch.randn(8, 500, generator=generator).bfloat16() for _ in range(2))
    low, high = logits.clone().requires_grad_(), logits.float().requires_grad_()
    loss, exact = mean_kl(low, target), by_operations(high, target.float())
    loss.backward()
    exact.backward()
    torch.testing.assert_close(loss, exact)
    assert low.grad is not None
    assert high.grad is not None
    torch.testing.assert_close(low.grad, high.grad.bfloat16(), rtol=1e-2, atol=1e-6)


def test_wants_no_gradient_where_none_is_recorded() -> None:
    logits = torch.randn(4, 9, requires_grad=True)
    with torch.no_grad():
        assert not mean_kl(logits, logits + 1).requires_grad


@pytest.mark.parametrize(
    ("at_once", "parts"), [(1, 7), (11, 7), (33, 3), (34, 3), (77, 1), (999, 1)]
)
def test_so_many_logits_are_computed_at_a_time(
    monkeypatch: pytest.MonkeyPatch, at_once: int, parts: int
) -> None:
    """Of 7 rows of 11: as many rows as fit, and one at least."""
    rows: list[int] = []
    log_softmax = torch.Tensor.log_softmax

    def record(logits: torch.Tensor, dim: int) -> torch.Tensor:
        rows.append(len(logits))
        return log_softmax(logits, dim)

    monkeypatch.setattr(torch.Tensor, "log_softmax", record)
    monkeypatch.setitem(divergence._AT_ONCE, "cpu", at_once)
    logits = torch.randn(7, 11, requires_grad=True)
    mean_kl(logits, torch.randn(7, 11))
    assert len(rows) == 2 * parts
    assert sum(rows) == 2 * 7
    monkeypatch.setattr(divergence, "_AT_ONCE", {})
    rows.clear()
    mean_kl(logits, torch.randn(7, 11))
    assert rows == [7, 7]  # elsewhere all of so few fit


def test_the_target_gets_no_gradient() -> None:
    logits, target = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
    mean_kl(logits, target).backward()
    assert logits.grad is not None
    assert target.grad is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_divergence_is_in_float32_or_better(given: torch.dtype, expected: torch.dtype) -> None:
    assert mean_kl(torch.randn(3, 5).to(given), torch.randn(3, 5).to(given)).dtype == expected
