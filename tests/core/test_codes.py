"""Codes and scales come back as they were, take the bytes that they should, and are checked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.codes import (
    BITS,
    Grid,
    check_codes,
    codes_of,
    read_codes,
    store_codes,
    values_of,
)
from permllm.core.patterns import Pattern


@st.composite
def coded(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int]:
    """Codes, scales, how many values share one, and bits."""
    bits = draw(st.sampled_from(list(BITS.values())))
    top = Grid(bits).top
    rows, count, kept = draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(st.integers(1, 48))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    codes = torch.randint(-top, top + 1, (rows, count), generator=generator).to(torch.int8)
    codes[0, 0], codes[-1, -1] = -top, top
    scales = torch.randn(rows, -(-count // kept), generator=generator).exp().bfloat16()
    return codes, scales * 2.0 ** draw(st.integers(-40, 20)), kept, bits


@given(coded())
def test_codes_are_stored_bit_for_bit(problem: tuple[Tensor, Tensor, int, int]) -> None:
    codes, _, _, bits = problem
    stored = store_codes(codes, bits)
    assert stored.nbytes == len(codes) * -(-codes.shape[1] * bits // 8)
    assert torch.equal(read_codes(stored, codes.shape[1]), codes)


def test_the_first_of_two_codes_is_the_lower_half_of_a_byte() -> None:
    codes = torch.tensor([[1, -1, 7], [-7, 0, -2]], dtype=torch.int8)
    assert store_codes(codes, 4).tolist() == [[0xF1, 0x07], [0x09, 0x0E]]
    assert store_codes(codes, 8) is codes


@given(coded(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_values_give_their_codes_again(
    problem: tuple[Tensor, Tensor, int, int], dtype: torch.dtype
) -> None:
    codes, scales, kept, _ = problem
    values = values_of(codes, scales, kept)
    for row in range(len(codes)):
        for place in range(codes.shape[1]):
            scale = scales[row, place // kept].double()
            assert values[row, place].double() == codes[row, place].double() * scale
    assert torch.equal(codes_of(values.to(dtype), scales, kept), codes)


@pytest.mark.parametrize(
    ("grid", "channels", "scales", "kept"),
    [
        (Grid(8), 24, 1, 12),
        (Grid(4, 8), 24, 3, 4),
        (Grid(4, 16), 24, 2, 8),
        (Grid(4, 128), 24, 1, 12),
    ],
)
def test_a_grid_counts_its_scales(grid: Grid, channels: int, scales: int, kept: int) -> None:
    assert (grid.scales(channels), grid.kept(channels, Pattern(2, 4))) == (scales, kept)


def test_what_is_no_code_or_no_scale_is_refused() -> None:
    pattern, grid = Pattern(2, 4), Grid(4, 8)
    stored, scales = torch.zeros(3, 5, dtype=torch.uint8), torch.ones(3, 3).bfloat16()
    check_codes(stored, scales, grid, 20, pattern)
    with pytest.raises(ValueError, match=r"which are 5 of torch\.uint8"):
        check_codes(stored[:, :4], scales, grid, 20, pattern)
    with pytest.raises(ValueError, match=r"which are 5 of torch\.uint8"):
        check_codes(stored.view(torch.int8), scales, grid, 20, pattern)
    with pytest.raises(ValueError, match=r"scales \(3, 2\) .* should be \(3, 3\)"):
        check_codes(stored, scales[:, :2], grid, 20, pattern)
    with pytest.raises(ValueError, match="should be"):
        check_codes(stored, scales.int(), grid, 20, pattern)
    for bad in (torch.nan, torch.inf, 0.0, -1.0):
        damaged = scales.clone()
        damaged[1, 2] = bad
        with pytest.raises(ValueError, match=rf"the scale {bad:g} in row 1, place 2 is no size"):
            check_codes(stored, damaged, grid, 20, pattern)
