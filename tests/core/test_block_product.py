"""The block-wise product equals the dense-matrix formulation, values and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permllm.core.block_product import (
    block_masked_weight,
    dense_masked_weight,
    masked_in_order,
    run_permutation,
)
from permllm.core.patterns import Pattern, is_nm, nm_mask


def block_diagonal(runs: list[torch.Tensor]) -> torch.Tensor:
    return torch.block_diag(*(block for run in runs for block in run))


@st.composite
def problems(draw: st.DrawFn) -> dict:
    m = draw(st.sampled_from([2, 4, 8]))
    pattern = Pattern(draw(st.integers(1, m - 1)), m)
    runs = [(draw(st.integers(1, 3)), m * draw(st.integers(1, 2)))]
    if draw(st.booleans()):
        runs.append((1, m))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    channels = sum(blocks * size for blocks, size in runs)
    rows = draw(st.integers(1, 5))

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return {
        "pattern": pattern,
        "weight": rand(channels, rows) - 0.5,
        "scores": rand(channels, rows) * 3,
        "soft": [rand(blocks, size, size) for blocks, size in runs],
        "local": [
            torch.stack([torch.randperm(size, generator=generator) for _ in range(blocks)])
            for blocks, size in runs
        ],
        "start": torch.randperm(channels, generator=generator),
        "target": rand(channels, rows),
    }


def dense_reference(problem: dict, soft: list[torch.Tensor]) -> torch.Tensor:
    """The paper's formulation on channels in start order, brought back to the original one."""
    start, order = problem["start"], run_permutation(problem["local"])
    channels = len(start)
    hard = torch.zeros(channels, channels, dtype=torch.float64)
    hard[order, torch.arange(channels)] = 1
    whole = block_diagonal(soft)
    straight = (hard - whole).detach() + whole
    weight, scores = problem["weight"][start].T, problem["scores"][start].T
    moved = dense_masked_weight(weight, scores, straight, problem["pattern"]).T
    return torch.zeros_like(moved).index_copy(0, start, moved)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4))
def test_runs_follow_one_another(sizes: list[tuple[int, int]]) -> None:
    local = [torch.stack([torch.randperm(size) for _ in range(count)]) for count, size in sizes]
    blocks = [block for run in local for block in run]
    offsets = [sum(map(len, blocks[:index])) for index in range(len(blocks))]
    expected = [offset + place for offset, block in zip(offsets, blocks, strict=True)
                for place in block.tolist()]  # fmt: skip
    assert run_permutation(local).tolist() == expected


@settings(max_examples=60)
@given(problems())
def test_equals_the_dense_formulation(problem: dict) -> None:
    results = []
    for dense in (False, True):
        soft = [run.clone().requires_grad_() for run in problem["soft"]]
        if dense:
            masked = dense_reference(problem, soft)
        else:
            start = problem["start"]
            masked = block_masked_weight(
                problem["weight"],
                problem["scores"][start],
                soft,
                problem["local"],
                start,
                problem["pattern"],
            )
        gradients = torch.autograd.grad((masked * problem["target"]).sum(), soft)
        results.append((masked, gradients))
    (masked, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(masked, expected)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference)


@settings(max_examples=40)
@given(problems())
def test_is_nm_in_permuted_order_and_else_the_weight(problem: dict) -> None:
    start = problem["start"]
    masked = block_masked_weight(
        problem["weight"],
        problem["scores"][start],
        problem["soft"],
        problem["local"],
        start,
        problem["pattern"],
    )
    permutation = start[run_permutation(problem["local"])]
    assert sorted(permutation.tolist()) == list(range(len(permutation)))
    assert is_nm(masked[permutation].T, problem["pattern"])
    kept = masked != 0
    torch.testing.assert_close(masked[kept], problem["weight"][kept])


@settings(max_examples=60)
@given(problems(), st.booleans(), st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
def test_the_compiled_mask_equals_the_same_in_tensor_operations(
    problem: dict, draws: bool, dtype: torch.dtype
) -> None:
    weight, start, pattern = problem["weight"].to(dtype), problem["start"], problem["pattern"]
    scores = problem["scores"].round() if draws else problem["scores"]
    scores = scores.to(dtype)
    order = run_permutation(problem["local"])
    found = masked_in_order(weight, scores, order, start, pattern)
    places = start[order]
    mask = nm_mask(scores[order].T, pattern).T
    expected = torch.zeros_like(weight).index_copy(0, places, weight[places] * mask)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_compiled_mask_takes_many_rows_and_wide_patterns() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(96, 1300, generator=generator)
    here = torch.arange(96)
    for pattern in (Pattern(2, 4), Pattern(9, 32)):
        found = masked_in_order(torch.ones_like(scores), scores, here, here, pattern)
        assert torch.equal(found.bool(), nm_mask(scores.T, pattern).T)


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


@settings(max_examples=30)
@given(problems())
def test_other_devices_give_the_same_mask_by_operations(problem: dict) -> None:
    weight, start, pattern = problem["weight"], problem["start"], problem["pattern"]
    scores, order = problem["scores"], run_permutation(problem["local"])
    expected = masked_in_order(weight, scores, order, start, pattern)
    masked = masked_in_order(weight.as_subclass(Elsewhere), scores, order, start, pattern)
    assert torch.equal(masked.as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("soft_mask", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_are_computed_in_float32_or_better(dtype: torch.dtype, soft_mask: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, scores, target = (torch.rand(8, 50, generator=generator).to(dtype) for _ in range(3))
    here = torch.arange(8)
    gradients = []
    for wide in (dtype, torch.float64):
        soft = torch.eye(8, dtype=torch.float64)[None].requires_grad_()
        masked = block_masked_weight(
            weight.to(wide),
            scores.to(wide),
            [soft],
            [here[None]],
            here,
            Pattern(2, 4),
            soft_mask=soft_mask,
        )
        assert masked.dtype == wide
        gradients.append(torch.autograd.grad((masked * target.to(wide)).sum(), soft)[0])
    # What the loss gives is rounded to the weight's dtype; nothing else is.
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


def test_by_default_the_gradient_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, scores = (torch.rand(8, 5, generator=generator) for _ in range(2))
    here, gradients = torch.arange(8), []
    for options in ({}, {"soft_mask": True}, {"soft_mask": False}):
        soft = torch.eye(8)[None].requires_grad_()
        masked = block_masked_weight(
            weight, scores, [soft], [here[None]], here, Pattern(2, 4), **options
        )
        gradients.append(torch.autograd.grad(masked.square().sum(), soft)[0])
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])
