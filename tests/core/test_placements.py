"""The placement gradient equals what a brute-force swap changes, to first order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permllm.core.block_product import block_masked_weight
from permllm.core.patterns import Pattern, nm_mask_by_rows
from permllm.core.placements import (
    placement_gradient,
    placement_gradient_by_operations,
    rivals_of,
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Pattern, torch.Tensor, torch.Tensor]:
    m = draw(st.sampled_from([2, 3, 4, 8]))
    pattern = Pattern(draw(st.integers(1, m - 1)), m)
    shape = (m * draw(st.integers(1, 2)), draw(st.integers(1, 20)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.rand(shape, generator=generator, dtype=torch.float64)
    return pattern, scores, torch.randn(shape, generator=generator, dtype=torch.float64)


def kept_gradient(scores: torch.Tensor, gradient: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """The sum of the gradients of what the mask of one group keeps."""
    return (gradient * nm_mask_by_rows(scores, pattern)).sum()


@settings(max_examples=30)
@given(problems())
def test_counts_what_a_newcomer_changes(problem: tuple) -> None:
    pattern, scores, gradient = problem
    here = torch.arange(len(scores))
    found = placement_gradient(scores[None], gradient[None], here[None], pattern)[0]
    for place in range(len(scores)):
        group = slice(place // pattern.m * pattern.m, (place // pattern.m + 1) * pattern.m)
        inside = place - group.start
        for channel in range(len(scores)):
            before, after = scores[group].clone(), scores[group].clone()
            value = gradient[group].clone()
            # Nobody at the place: an entry that no mask would keep.
            before[inside], after[inside], value[inside] = -1, scores[channel], gradient[channel]
            expected = kept_gradient(after, value, pattern) - kept_gradient(before, value, pattern)
            torch.testing.assert_close(found[channel, place], expected)


@settings(max_examples=30)
@given(problems())
def test_predicts_every_swap_of_two_groups_exactly(problem: tuple) -> None:
    """For a loss that is linear in the mask, first order is all there is."""
    pattern, scores, gradient = problem
    start, size = torch.arange(len(scores)), len(scores)
    soft = torch.eye(size, dtype=torch.float64)[None].requires_grad_()

    def loss(order: torch.Tensor) -> torch.Tensor:
        weight = torch.ones_like(scores)
        masked = block_masked_weight(
            weight, scores, [soft], [order[None]], start, pattern, soft_mask=False
        )
        return (masked * gradient).sum()

    (table,) = torch.autograd.grad(before := loss(start), soft)
    for one in range(size):
        for other in range(one // pattern.m * pattern.m + pattern.m, size):
            order = start.clone()
            order[[one, other]] = start[[other, one]]
            predicted = table[0, other, one] + table[0, one, other]
            predicted = predicted - table[0, one, one] - table[0, other, other]
            torch.testing.assert_close(loss(order) - before, predicted)


@settings(max_examples=30)
@given(problems(), st.integers(1, 3), st.integers(0, 2**31))
def test_the_compiled_kernel_equals_the_same_in_tensor_operations(
    problem: tuple, blocks: int, seed: int
) -> None:
    pattern, scores, gradient = problem
    generator = torch.Generator().manual_seed(seed)
    local = torch.stack([torch.randperm(len(scores), generator=generator) for _ in range(blocks)])
    scores, gradient = (x.expand(blocks, *x.shape) for x in (scores, gradient))
    found = placement_gradient(scores, gradient, local, pattern)
    expected = placement_gradient_by_operations(scores, gradient, local, pattern)
    torch.testing.assert_close(found, expected)


def test_the_compiled_kernel_takes_many_rows_and_other_dtypes() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, gradient = (torch.randn(3, 12, 1300, generator=generator) for _ in range(2))
    local = torch.stack([torch.randperm(12, generator=generator) for _ in range(3)])
    found = placement_gradient(scores, gradient, local, Pattern(2, 4))
    expected = placement_gradient_by_operations(
        scores.double(), gradient.double(), local, Pattern(2, 4)
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    halved = placement_gradient(scores.bfloat16(), gradient.bfloat16(), local, Pattern(2, 4))
    assert halved.dtype == torch.float32


@pytest.fixture(autouse=True, scope="module")
def no_fused_kernels() -> Iterator[None]:
    """Of a GPU that is there: they would not find these tensors on it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("block_product", "placements"):
            patch.setattr(f"permllm.core.{module}.has_fused_kernels", lambda device: False)
        yield


class Elsewhere(torch.Tensor):
    """A tensor that says that it is on a device without compiled kernels."""

    device = torch.device("cuda")  # type: ignore[assignment]


def test_other_devices_compute_it_by_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, gradient = (torch.randn(2, 8, 5, generator=generator).bfloat16() for _ in range(2))
    local = torch.arange(8).expand(2, 8)
    expected = placement_gradient(scores, gradient, local, Pattern(2, 4))
    monkeypatch.setattr("permllm.core.kernels.placement_gradient_on_cpu", None)
    computed = placement_gradient(scores.as_subclass(Elsewhere), gradient, local, Pattern(2, 4))
    assert computed.dtype == torch.float32
    torch.testing.assert_close(computed.as_subclass(torch.Tensor), expected)


def test_rivals_of_equal_scores() -> None:
    scores = torch.tensor([[1.0], [1.0], [1.0], [0.5]])
    gradient = torch.tensor([[4.0], [2.0], [9.0], [7.0]])
    threshold, lost = rivals_of(scores[None], gradient[None], torch.arange(4)[None], Pattern(2, 4))
    assert threshold.flatten().tolist() == [1.0, 1.0, 1.0, 1.0]
    assert set(lost.flatten().tolist()) <= {4.0, 2.0, 9.0}


def test_the_compiled_kernel_leaves_the_number_of_threads() -> None:
    """Numba sets OpenMP's when it starts, which PyTorch would take for its own."""
    code = """
import torch
from permllm.core.patterns import Pattern
from permllm.core.placements import placement_gradient
scores, gradient = torch.randn(2, 3, 8, 70)
placement_gradient(scores, gradient, torch.arange(8).expand(3, 8), Pattern(2, 4))
print(torch.get_num_threads())
"""
    for threads in ("1", "2"):
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        environment.pop("MKL_NUM_THREADS", None)  # PyTorch would show that instead
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == threads
