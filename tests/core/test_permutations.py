"""Permutations invert, stay in their blocks and are told from other tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.permutations import (
    block_permutation,
    block_sizes,
    identity,
    invert,
    is_permutation,
)


@st.composite
def orders(draw: st.DrawFn) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randperm(draw(st.integers(1, 40)), generator=generator)


@given(orders())
def test_inverse_undoes(permutation: Tensor) -> None:
    nothing = identity(len(permutation))
    assert torch.equal(permutation[invert(permutation)], nothing)
    assert torch.equal(invert(permutation)[permutation], nothing)
    assert torch.equal(invert(invert(permutation)), permutation)


def test_inverse_of_several_at_once() -> None:
    permutations = torch.stack([torch.randperm(6) for _ in range(3)])
    for permutation, inverse in zip(permutations, invert(permutations), strict=True):
        assert torch.equal(permutation[inverse], identity(6))


@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 2**31))
def test_block_permutations_stay_in_their_blocks(blocks: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    local = torch.stack([torch.randperm(size, generator=generator) for _ in range(blocks)])
    permutation = block_permutation(local)
    assert is_permutation(permutation, blocks * size)
    assert torch.equal(permutation // size, torch.arange(blocks).repeat_interleave(size))
    assert torch.equal((permutation % size).view(blocks, size), local)
    whole = torch.randperm(blocks * size, generator=generator)
    assert is_permutation(whole[permutation], blocks * size)


@given(st.integers(1, 64), st.integers(1, 100), st.sampled_from([2, 4, 8, 16]))
def test_block_sizes_cover_the_channels(groups: int, block: int, m: int) -> None:
    channels = groups * m
    sizes = block_sizes(channels, block, m)
    assert sum(sizes) == channels
    assert all(size % m == 0 and size > 0 for size in sizes)
    assert len(set(sizes[:-1])) <= 1
    assert sizes[-1] <= sizes[0] <= max(block, m)


def test_block_sizes_by_example() -> None:
    assert block_sizes(576, 64, 4) == [64] * 9
    assert block_sizes(160, 64, 4) == [64, 64, 32]
    assert block_sizes(24, 10, 4) == [8, 8, 8]
    assert block_sizes(8, 64, 4) == [8]
    assert block_sizes(8, 1, 4) == [4, 4]
    with pytest.raises(ValueError, match="groups of 4"):
        block_sizes(10, 64, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.tensor([0, 0, 1]),
        torch.tensor([1, 2, 3]),
        torch.tensor([-1, 0, 1]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([[0, 1]]),
        torch.tensor([True, False]),
    ],
)
def test_what_is_no_permutation(wrong: Tensor) -> None:
    assert not is_permutation(wrong)


def test_length_of_a_permutation() -> None:
    assert is_permutation(identity(4), 4)
    assert not is_permutation(identity(4), 5)


def test_orders_are_made_on_the_device_of_what_is_given() -> None:
    order, local = torch.tensor([2, 0, 1]), torch.tensor([[1, 0], [0, 1]])
    with torch.device("meta"):
        results = invert(order), block_permutation(local)
        assert is_permutation(order)
    assert [result.tolist() for result in results] == [[1, 2, 0], [1, 0, 2, 3]]
