"""The entropy from the histogram against the entropy of the values themselves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from permllm_esparse.entropy import channel_entropy, entropy, equal_intervals, value_range
from permllm_esparse.histogram import bin_edges, channel_counts
from torch import Tensor

K = 100


def exact_entropy(values: Tensor, intervals: int) -> float:
    """The paper's entropy of one channel: K equal intervals from its least to its greatest."""
    wide = values.double()
    low, high = wide.min(), wide.max()
    if low == high:
        return 0.0
    place = ((wide - low) / (high - low) * intervals).long().clamp_max(intervals - 1)
    return entropy(torch.bincount(place, minlength=intervals).double()).item()


def estimate(values: Tensor, intervals: int = K) -> float:
    return channel_entropy(channel_counts(values.unsqueeze(1)), intervals).item()


def worst_difference(values: Tensor, intervals: int) -> float:
    """The stated bound, ``log(2s + 1)`` with ``s = ⌈1.5 · w / Δ⌉``, and never above log K."""
    counts, edges = channel_counts(values.unsqueeze(1)), bin_edges()
    low, high = (end.item() for end in value_range(counts))
    if low == high:
        return math.log(intervals)
    widest = edges.diff()[counts[0] > 0].max().item()
    moved = math.ceil(1.5 * widest * intervals / (high - low) + 1e-9)
    return min(math.log(2 * moved + 1), math.log(intervals))


SIZES = st.floats(2.0**-10, 2.0**10, width=32)


@st.composite
def channels(draw: st.DrawFn) -> Tensor:
    """Values of one channel: a few repeated ones, or many of some distribution."""
    if draw(st.booleans()):
        numbers = st.floats(-(2.0**10), 2.0**10, width=32)
        some = draw(st.lists(numbers, min_size=1, max_size=12))
        repeats = draw(st.lists(st.integers(1, 30), min_size=len(some), max_size=len(some)))
        return torch.tensor(some).repeat_interleave(torch.tensor(repeats))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    normal = torch.randn(draw(st.integers(2, 500)), generator=generator)
    power = draw(st.sampled_from([1, 2, 3, 5]))
    return normal**power * draw(SIZES) + draw(st.sampled_from([0.0, 1.0, -30.0]))


@settings(max_examples=300, deadline=None)
@given(channels(), st.sampled_from([2, 10, 100, 1000]))
def test_differs_from_the_exact_entropy_by_the_stated_bound_at_most(
    values: Tensor, intervals: int
) -> None:
    found, exact = estimate(values, intervals), exact_entropy(values, intervals)
    assert 0 <= found <= math.log(intervals) + 1e-9
    assert abs(found - exact) <= worst_difference(values, intervals) + 1e-9


DISTRIBUTIONS = {
    "normal": lambda x, y: x,
    "normal off zero": lambda x, y: x + 2,
    "uniform": lambda x, y: torch.special.ndtr(x),
    "uniform around zero": lambda x, y: torch.special.ndtr(x) - 0.5,
    "laplace": lambda x, y: x.sign() * torch.log1p(-2 * (torch.special.ndtr(x) - 0.5).abs()),
    "gated": lambda x, y: torch.nn.functional.silu(x) * y,
    "rectified": lambda x, y: x.relu(),
}


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(DISTRIBUTIONS)), st.integers(0, 2**31), SIZES)
def test_is_close_for_the_distributions_of_activations(name: str, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 4096, generator=generator, dtype=torch.float64)
    values = DISTRIBUTIONS[name](x, y) * size
    assert estimate(values) == pytest.approx(exact_entropy(values, K), abs=0.05)


@given(st.floats(-1000, 1000, width=32), st.integers(1, 50))
def test_a_constant_says_nothing(value: float, times: int) -> None:
    assert estimate(torch.full((times,), value)) == 0


def test_no_tokens_say_nothing() -> None:
    counts = channel_counts(torch.zeros(0, 3))
    assert channel_entropy(counts, K).tolist() == [0, 0, 0]
    assert channel_entropy(counts[:0], K).shape == (0,)


@given(st.integers(1, 200), st.integers(1, 200), SIZES)
def test_two_values_have_the_binary_entropy(ones: int, others: int, size: float) -> None:
    share = ones / (ones + others)
    expected = -share * math.log(share) - (1 - share) * math.log(1 - share)
    values = torch.tensor([0.0] * ones + [size] * others)
    assert estimate(values) == pytest.approx(expected)
    assert estimate(values - 2 * size) == pytest.approx(expected)


def test_equally_frequent_values_have_the_logarithm_of_their_number() -> None:
    for count in (2, 3, 11):
        values = torch.arange(count).float().repeat(5) - count // 2
        assert estimate(values) == pytest.approx(math.log(count))


def test_a_uniform_channel_says_most_and_an_outlier_takes_it_away() -> None:
    uniform = torch.linspace(-1, 1, 10_001)
    assert estimate(uniform) == pytest.approx(math.log(K), abs=0.05)
    assert estimate(torch.cat([uniform, torch.tensor([50.0])])) < math.log(6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(-5, 5), st.integers(2, 200))
def test_scaling_by_a_power_of_two_changes_nothing(seed: int, power: int, intervals: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(100, generator=generator)
    assume(bool((values.abs() > 2.0**-10).all()))
    scaled = estimate(values * 2.0**power, intervals)
    assert scaled == pytest.approx(estimate(values, intervals), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(channels(), st.integers(2, 300))
def test_dealing_loses_no_value_and_channels_do_not_mix(values: Tensor, intervals: int) -> None:
    counts = channel_counts(torch.stack([values, -values, values * 0], 1))
    dealt = equal_intervals(counts, intervals)
    assert dealt.shape == (3, intervals)
    assert (dealt >= 0).all()
    torch.testing.assert_close(dealt.sum(1), torch.full((3,), float(len(values))).double())
    for channel in range(3):
        torch.testing.assert_close(
            equal_intervals(counts[channel : channel + 1], intervals)[0], dealt[channel]
        )


def test_channels_are_computed_in_parts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = channel_counts(torch.randn(50, 7, generator=torch.Generator().manual_seed(0)))
    whole = channel_entropy(counts, K)
    monkeypatch.setattr("permllm_esparse.entropy._CHANNELS", 3)
    torch.testing.assert_close(channel_entropy(counts, K), whole, rtol=0, atol=0)
