"""What is rounded is on its grid, as near as can be, and zeros stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.codes import Grid, codes_of, values_of
from permllm.core.packing import pack
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.rounding import (
    SHRINKS,
    best_scale,
    nearest,
    round_compensating,
    round_to_nearest,
)

PATTERN = Pattern(2, 4)
GRIDS = [Grid(8), Grid(4), Grid(8, 16), Grid(4, 8), Grid(4, 160), Grid(4, 132)]


def problem(seed: int, rows: int = 12, channels: int = 48) -> tuple[Tensor, Tensor]:
    """A pruned weight ``[C_out, C_in]`` and the Gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    size = torch.rand(channels, generator=generator, dtype=torch.float64) + 0.1
    inputs = torch.randn(4 * channels, channels, generator=generator, dtype=torch.float64)
    inputs = inputs @ (mix / channels**0.5 + torch.eye(channels, dtype=torch.float64)) * size
    return weight * nm_mask(weight.abs(), PATTERN), inputs.T @ inputs


def error(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    off = weight - rounded
    return float(((off @ gram) * off).sum())


@settings(max_examples=40)
@given(st.integers(0, 1000), st.sampled_from(GRIDS), st.sampled_from([48, 300]), st.booleans())
def test_both_ways_end_on_the_grid_and_keep_zeros(
    seed: int, grid: Grid, channels: int, compensating: bool
) -> None:
    weight, gram = problem(seed, rows=5, channels=channels)
    given = weight.clone()
    if compensating:
        rounded, scales = round_compensating(weight, gram, grid)
    else:
        rounded, scales = round_to_nearest(weight, gram.diagonal(), grid)
    assert torch.equal(weight, given)
    assert rounded.shape == weight.shape
    assert rounded.is_contiguous()
    assert (scales.shape, scales.dtype) == ((5, grid.scales(channels)), torch.bfloat16)
    assert not rounded[weight == 0].any()
    values, _ = pack(rounded, PATTERN)
    codes = codes_of(values, scales, grid.kept(channels, PATTERN))
    assert int(codes.abs().max()) <= grid.top
    back = values_of(codes, scales, grid.kept(channels, PATTERN))
    assert torch.equal(back.double(), values)


@given(st.integers(0, 1000), st.sampled_from(GRIDS[:4]))
def test_a_weight_that_is_not_cut_off_is_off_by_half_a_step_at_most(seed: int, grid: Grid) -> None:
    weight, gram = problem(seed)
    rounded, scales = round_to_nearest(weight, gram.diagonal(), grid)
    steps = scales.double().repeat_interleave(grid.channels(48), 1)[:, :48]
    cut_off = weight.abs() > grid.top * steps
    off = (weight - rounded).abs()
    assert bool((off <= steps / 2 + 1e-12)[~cut_off].all())
    assert torch.equal(rounded[cut_off].abs(), (grid.top * steps)[cut_off])


@given(st.integers(0, 1000), st.sampled_from([7, 127]))
def test_a_scale_is_the_best_of_those_that_are_tried(seed: int, top: int) -> None:
    weight, gram = problem(seed)
    columns, importance = weight.T.contiguous(), gram.diagonal()
    exact = columns.abs().amax(0) / top
    whole = exact.bfloat16()
    up = torch.nextafter(whole, torch.full_like(whole, torch.inf))
    whole = torch.where(whole < exact, up, whole)
    tried = torch.stack([(whole.float() * shrink).bfloat16() for shrink in SHRINKS])
    assert torch.equal(tried[0], whole)
    errors = torch.stack(
        [
            ((columns - nearest(columns, one, top)).square() * importance[:, None]).sum(0)
            for one in tried
        ]
    )
    best = tried.gather(0, errors.argmin(0)[None])[0]
    assert torch.equal(best_scale(columns, importance, top), best)


def test_a_large_weight_that_hardly_matters_is_cut_off() -> None:
    columns = torch.tensor([[10.0], [1.0], [0.4], [-0.7]])
    careless = best_scale(columns, torch.tensor([1e-6, 1.0, 1.0, 1.0]), 7)
    careful = best_scale(columns, torch.ones(4), 7)
    assert careless < 0.8 * careful
    assert float(careful) * 7 >= 10 * 0.9


@pytest.mark.parametrize("channels", [48, 200])
def test_compensating_lowers_the_error_of_the_output(channels: int) -> None:
    for grid in GRIDS:
        better = 0
        for seed in range(10):
            weight, gram = problem(seed, channels=channels)
            plain, _ = round_to_nearest(weight, gram.diagonal(), grid)
            rounded, _ = round_compensating(weight, gram, grid)
            better += error(weight, rounded, gram) <= error(weight, plain, gram)
        assert better >= 9, grid


@given(st.integers(0, 1000), st.sampled_from(GRIDS))
def test_without_correlations_nothing_is_left_to_make_up_for(seed: int, grid: Grid) -> None:
    weight, gram = problem(seed)
    alone = torch.diag(gram.diagonal())
    one, scales = round_compensating(weight, alone, grid)
    two, same = round_to_nearest(weight, alone.diagonal(), grid)
    assert torch.equal(one, two)
    assert torch.equal(scales, same)


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-30, 1e30])
def test_rows_of_any_size_have_a_scale(size: float) -> None:
    weight = torch.tensor([[1.0, -0.5, 0.0, 0.25]]) * size
    for grid in (Grid(8), Grid(4, 4)):
        for rounded, scales in (
            round_to_nearest(weight, torch.ones(4), grid),
            round_compensating(weight, torch.eye(4), grid),
        ):
            assert bool((scales > 0).all() and scales.isfinite().all())
            assert bool(((weight - rounded).abs() <= scales.float()).all())


def test_channels_that_never_fire_are_rounded_by_themselves() -> None:
    weight, gram = problem(0)
    gram[:8] = 0
    gram[:, :8] = 0
    rounded, scales = round_compensating(weight, gram, Grid(8, 8))
    plain, _ = round_to_nearest(weight[:, :8], torch.zeros(8), Grid(8, 8))
    assert torch.equal(rounded[:, :8], plain)
    assert bool(scales.isfinite().all())
