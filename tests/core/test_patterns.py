"""N:M masks hold what they promise, for any N:M."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.patterns import (
    Pattern,
    is_nm,
    kept,
    nm_mask,
    nm_mask_by_rows,
    retained_score,
    retained_share,
)


@st.composite
def patterns(draw: st.DrawFn, largest: int = 20) -> Pattern:
    m = draw(st.integers(2, largest))
    return Pattern(draw(st.integers(1, m - 1)), m)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Pattern]:
    """Scores with many ties, as ``[C_out, C_in]``, and a pattern that fits them."""
    pattern = draw(patterns())
    rows, groups = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    levels = draw(st.sampled_from([1, 3, 10**6]))
    scores = torch.randint(levels, (rows, groups * pattern.m), generator=generator)
    return scores.double(), pattern


def dense_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """The mask, one group after another, from Python's stable sort."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for row, values in enumerate(scores.tolist()):
        for first in range(0, len(values), pattern.m):
            places = range(first, first + pattern.m)
            for place in sorted(places, key=lambda i: -values[i])[: pattern.n]:
                mask[row, place] = True
    return mask


@settings(max_examples=80)
@given(problems())
def test_mask_equals_a_stable_sort_in_both_layouts(problem: tuple[Tensor, Pattern]) -> None:
    scores, pattern = problem
    expected = dense_mask(scores, pattern)
    assert torch.equal(nm_mask(scores, pattern), expected)
    assert torch.equal(nm_mask_by_rows(scores.T, pattern), expected.T)
    assert torch.equal(nm_mask_by_rows(scores.T.contiguous(), pattern), expected.T)


@settings(max_examples=40)
@given(problems())
def test_masked_tensor_is_nm_and_a_denser_one_is_not(problem: tuple[Tensor, Pattern]) -> None:
    scores, pattern = problem
    mask = nm_mask(scores, pattern)
    counts = mask.unflatten(-1, (-1, pattern.m)).sum(-1)
    assert (counts == pattern.n).all()
    assert is_nm((scores + 1) * mask, pattern)
    assert not is_nm(scores + 1, pattern)
    assert is_nm(torch.zeros_like(scores), pattern)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_the_mask_keeps_stays_bit_for_bit_and_the_rest_is_zero(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[-1.5, float("inf"), 3e-30], [-0.25, float("nan"), 7.0]]).to(dtype)
    mask = torch.tensor([[False, True, True], [True, False, False]])
    for values, where in ((tensor, mask), (tensor.T, mask.T)):
        found = kept(values, where)
        assert found.dtype == dtype
        assert torch.equal(found, torch.where(where, values, 0))
    assert not kept(-tensor.abs(), torch.zeros_like(mask)).signbit().any()


def test_groups_lie_along_the_last_axis_of_any_number() -> None:
    row = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    assert is_nm(row, Pattern(2, 4))
    assert is_nm(row.expand(2, 3, 8), Pattern(2, 4))
    assert not is_nm(row.roll(2).expand(2, 3, 8), Pattern(2, 4))
    with pytest.raises(ValueError, match="does not fit 6 channels"):
        is_nm(torch.ones(2, 4, 6), Pattern(2, 4))


def test_mask_of_more_axes_is_the_mask_of_each() -> None:
    scores = torch.rand(3, 2, 8, generator=torch.Generator().manual_seed(0))
    mask = nm_mask(scores, Pattern(2, 4))
    for part, expected in zip(mask, scores, strict=True):
        assert torch.equal(part, nm_mask(expected, Pattern(2, 4)))


@settings(max_examples=40)
@given(problems(), st.integers(0, 2**31))
def test_scaling_rows_leaves_the_mask(problem: tuple[Tensor, Pattern], seed: int) -> None:
    scores, pattern = problem
    factors = torch.randint(-8, 8, (len(scores), 1), generator=torch.Generator().manual_seed(seed))
    # Powers of two keep ties exact.
    assert torch.equal(nm_mask(scores * 2.0**factors, pattern), nm_mask(scores, pattern))


@settings(max_examples=40)
@given(problems(), st.integers(0, 2**31))
def test_retained_score_lies_between_its_bounds(problem: tuple[Tensor, Pattern], seed: int) -> None:
    scores, pattern = problem
    channels = scores.shape[1]
    permutation = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
    retained = retained_score(scores, pattern, permutation)
    assert retained.dtype == torch.float64
    keep = channels * pattern.n // pattern.m
    upper = scores.topk(keep, 1).values.sum()
    lower = scores.sum() * pattern.density
    assert lower - 1e-6 <= retained <= upper + 1e-6
    torch.testing.assert_close(retained, retained_score(scores[:, permutation], pattern))
    # The order within a group, and the order of the groups, do not matter.
    within = torch.cat([part.flip(0) for part in permutation.view(-1, pattern.m)])
    torch.testing.assert_close(retained_score(scores, pattern, within), retained)
    torch.testing.assert_close(retained_score(scores, pattern, permutation.flip(0)), retained)


def test_retained_share() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assert retained_share(scores, Pattern(2, 4)) == pytest.approx(0.7)
    assert retained_share(torch.zeros(2, 4), Pattern(2, 4)) == 1.0
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    assert retained_share(scores, Pattern(2, 4)) == 0.5
    assert retained_share(scores, Pattern(2, 4), order) == 1.0


def test_shares_are_summed_in_float64() -> None:
    ones = torch.ones(1, 4004, dtype=torch.bfloat16)  # no bfloat16 is 4004
    assert retained_share(ones, Pattern(2, 4)) == 0.5


@given(patterns(largest=10**9 - 1))
def test_text_and_pattern_go_both_ways(pattern: Pattern) -> None:
    assert Pattern.parse(str(pattern)) == pattern
    assert 0 < pattern.density < 1


@pytest.mark.parametrize("text", ["", "2", "2:4:8", "a:b", "-1:4", "2.0:4", "2/4", "9" * 12 + ":4"])
def test_text_that_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match="is not N:M"):
        Pattern.parse(text)


@pytest.mark.parametrize("text", ["4:4", "5:4", "0:4", "0:0"])
def test_impossible_patterns(text: str) -> None:
    with pytest.raises(ValueError, match="1 <= N < M"):
        Pattern.parse(text)


def test_channels_that_do_not_fit() -> None:
    scores, pattern = torch.ones(2, 6), Pattern(2, 4)
    for function in (nm_mask, is_nm, retained_score):
        with pytest.raises(ValueError, match="does not fit 6 channels"):
            function(scores, pattern)
    with pytest.raises(ValueError, match="does not fit 6 channels"):
        nm_mask_by_rows(scores.T, pattern)
