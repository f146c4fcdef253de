"""What the searches compute of scores that lie channel by channel equals its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permllm.core.patterns import Pattern, retained_score
from permllm.core.permutations import identity
from permllm.core.retained import (
    better,
    channelwise,
    nth_highest,
    pairwise_max_sums,
    retained_by_rows,
    thresholds,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_blocked_sums_equal_the_definition(seed: int, a: int, b: int, rows: int) -> None:
    left = torch.rand(a, rows, generator=generator(seed), dtype=torch.float64)
    right = torch.rand(b, rows, generator=generator(seed + 1), dtype=torch.float64)
    expected = torch.maximum(left.unsqueeze(1), right).sum(-1)
    for limit in (1, 7, 40, 1 << 19):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("permllm.core.retained.CPU_ELEMENTS", limit)
            torch.testing.assert_close(pairwise_max_sums(left, right), expected)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 7), st.data())
def test_nth_highest_equals_sorting(seed: int, members: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, members))
    channels = torch.rand(12, 3, generator=generator(seed))
    groups = torch.stack([torch.randperm(12, generator=generator(i))[:members] for i in range(4)])
    expected = channels[groups].sort(1, descending=True).values[:, n - 1]
    assert torch.equal(nth_highest(channels, groups, n), expected)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 6), st.data())
def test_thresholds_equal_the_definition(seed: int, members: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, members - 1))
    grouped = (torch.rand(3, members, 4, generator=generator(seed)) * 5).floor()
    for place in range(members):
        others = grouped[:, [other for other in range(members) if other != place]]
        expected = others.sort(1, descending=True).values[:, n - 1]
        assert torch.equal(thresholds(grouped, n)[:, place], expected)


@pytest.mark.parametrize("limit", [1, 3, 6, 7, 40, 60, 1000])
@pytest.mark.parametrize(("others", "size"), [(5, 6), (5, 1), (1, 1)])
def test_sums_take_as_large_temporaries_as_they_may(
    monkeypatch: pytest.MonkeyPatch, limit: int, others: int, size: int
) -> None:
    """As many columns at a time as fit, and then as many rows; at least one of each."""
    sizes: list[int] = []
    maximum = torch.maximum

    def record(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        sizes.append(out.numel())
        return maximum(left, right, out=out)

    monkeypatch.setattr("permllm.core.retained.CPU_ELEMENTS", limit)
    monkeypatch.setattr(torch, "maximum", record)
    pairwise_max_sums(torch.rand(4, size), torch.rand(others, size))
    assert sum(sizes) == 4 * others * size
    columns = max(1, min(others, limit // size))
    rows = max(1, min(4, limit // (size * columns)))
    assert max(sizes) == columns * rows * size
    assert len(sizes) == -(-others // columns) * -(-4 // rows)


def test_sums_over_no_rows_are_zero() -> None:
    assert pairwise_max_sums(torch.rand(3, 0), torch.rand(2, 0)).tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_channelwise_keeps_the_scores_and_their_layout(
    given: torch.dtype, expected: torch.dtype, scale: float
) -> None:
    scores = (scale * torch.rand(3, 8, generator=generator(), dtype=torch.float64)).to(given)
    laid = channelwise(scores)
    assert laid.dtype == expected
    assert laid.T.is_contiguous()
    assert laid.max() == 1
    torch.testing.assert_close(laid, (scores.double() / scores.double().max()).to(expected))


def test_channelwise_of_nothing_is_nothing() -> None:
    assert channelwise(torch.empty(0, 8)).shape == (0, 8)
    assert torch.equal(channelwise(torch.zeros(2, 4)), torch.zeros(2, 4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, -1.0])
@pytest.mark.parametrize("place", [(0, 0), (1, 3)])
def test_channelwise_refuses_what_is_no_score(bad: float, place: tuple[int, int]) -> None:
    scores = torch.ones(2, 8)
    scores[place] = bad
    with pytest.raises(ValueError, match=r"^scores must be finite and not negative$"):
        channelwise(scores)


@settings(max_examples=30)
@given(st.integers(0, 2**31))
def test_the_retained_score_is_the_same_channel_by_channel(seed: int) -> None:
    scores, pattern = torch.rand(5, 12, generator=generator(seed)), Pattern(2, 4)
    order = torch.randperm(12, generator=generator(seed))
    retained = retained_by_rows(scores.T.contiguous(), pattern, order)
    assert retained == pytest.approx(float(retained_score(scores, pattern, order)), rel=1e-12)


def test_the_better_order_is_the_one_that_retains_more_or_else_the_known_one() -> None:
    channels = torch.tensor([[9.0], [8.0], [7.0], [6.0], [1.0], [1.0], [1.0], [1.0]])
    pattern, plain = Pattern(2, 4), identity(8)
    mixed, turned = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7]), plain.flip(0)
    assert better(channels, pattern, plain, mixed) is mixed
    assert better(channels, pattern, mixed, plain) is mixed
    assert better(channels, pattern, plain, turned) is plain
