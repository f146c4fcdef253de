"""The histogram is a plain sum of counts, and its bins are where they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from permllm_esparse.histogram import (
    BINS,
    HIGHEST,
    HISTOGRAM,
    LOWEST,
    SIDE,
    STEPS,
    bin_edges,
    bin_numbers,
    channel_counts,
)
from torch import Tensor

NUMBERS = st.floats(-(2.0**HIGHEST), 2.0**HIGHEST, width=32, exclude_max=True)


def activations(tokens: int, channels: int, seed: int) -> Tensor:
    """Inputs whose channels differ in size by many octaves, with zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(-20, 20, (channels,), generator=generator).float().exp2()
    values = torch.randn(tokens, channels, generator=generator) * size
    return values.masked_fill(torch.rand(tokens, channels, generator=generator) < 0.1, 0)


@settings(max_examples=200, deadline=None)
@given(NUMBERS)
def test_a_number_lies_between_the_edges_of_its_bin(value: float) -> None:
    number = int(bin_numbers(torch.tensor([value])))
    low, high = bin_edges()[[number, number + 1]].tolist()
    assert low <= value <= high
    # The lower bound belongs to a positive bin, the upper one to a negative bin.
    assert value != (high if number > SIDE else low) or abs(value) == 2.0**HIGHEST


def test_every_bin_can_be_reached_and_edges_rise() -> None:
    edges = bin_edges()
    assert len(edges) == BINS + 1
    assert (edges.diff() > 0).all()
    middles = ((edges[1:] + edges[:-1]) / 2).float()
    assert torch.equal(bin_numbers(middles), torch.arange(BINS, dtype=torch.int32))


def test_bins_are_as_fine_as_stated() -> None:
    edges = bin_edges()[SIDE + 1 :]
    assert (edges.diff() / edges[:-1]).max() == pytest.approx(1 / STEPS)
    assert edges[0] == 2.0**LOWEST


@settings(max_examples=100, deadline=None)
@given(NUMBERS, st.integers(-3, 3))
def test_sign_mirrors_the_bin_and_a_power_of_two_moves_it_by_octaves(
    value: float, octaves: int
) -> None:
    here = int(bin_numbers(torch.tensor([value])))
    assert int(bin_numbers(torch.tensor([-value]))) == BINS - 1 - here
    if 2.0 ** (LOWEST + 3) <= abs(value) < 2.0 ** (HIGHEST - 3):
        moved = int(bin_numbers(torch.tensor([value * 2.0**octaves])))
        assert moved - here == octaves * STEPS * (1 if value > 0 else -1)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, -1e-30, 2.0**LOWEST * 0.999])
def test_what_is_too_small_counts_as_zero(value: float) -> None:
    assert int(bin_numbers(torch.tensor([value], dtype=torch.float64))) == SIDE


@pytest.mark.parametrize("value", [2.0**HIGHEST, 3e38, float("inf")])
def test_what_is_too_large_counts_as_the_largest(value: float) -> None:
    assert bin_numbers(torch.tensor([value, -value])).tolist() == [BINS - 1, 0]


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(0, 40), st.integers(1, 5), st.integers(0, 2**31))
def test_any_split_in_any_order_gives_the_same_counts(
    data: st.DataObject, tokens: int, channels: int, seed: int
) -> None:
    inputs = activations(tokens, channels, seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, tokens), max_size=5)))
    order = data.draw(st.permutations(range(len(cuts) + 1)))
    shuffled = inputs[torch.tensor(data.draw(st.permutations(range(tokens))), dtype=torch.long)]
    batches = shuffled.tensor_split(cuts)
    total = torch.zeros(channels, BINS)
    for index in order:
        total = total + HISTOGRAM.partial(batches[index])
    whole = HISTOGRAM.partial(inputs)
    assert torch.equal(total, whole)
    assert whole.dtype == torch.float32
    assert torch.equal(whole.sum(1), torch.full((channels,), float(tokens)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([1, 7, 1000]))
def test_counts_equal_counting_one_by_one(
    tokens: int, channels: int, seed: int, at_once: int
) -> None:
    inputs = activations(tokens, channels, seed)
    expected = torch.zeros(channels, BINS)
    for token in bin_numbers(inputs):
        for channel, number in enumerate(token.tolist()):
            expected[channel, number] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("permllm_esparse.histogram._CPU_ELEMENTS", at_once)
        assert torch.equal(channel_counts(inputs), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_count_as_their_float32(dtype: torch.dtype) -> None:
    inputs = activations(50, 4, 0).clamp(-1000, 1000).to(dtype)
    assert torch.equal(channel_counts(inputs), channel_counts(inputs.float()))


def test_counts_follow_a_permutation_of_the_channels() -> None:
    inputs, permutation = activations(20, 6, 1), torch.tensor([3, 0, 5, 1, 4, 2])
    moved = HISTOGRAM.permuted(channel_counts(inputs), permutation)
    assert torch.equal(moved, channel_counts(inputs[:, permutation]))
