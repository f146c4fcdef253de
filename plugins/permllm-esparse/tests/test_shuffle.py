"""The shuffle's contract, its two steps against brute force, and its promise."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from permllm_esparse.shuffle import ESparseShuffle, block_shuffle, naive_shuffle
from torch import Tensor

import permllm
from permllm.core.patterns import Pattern, retained_score
from permllm.core.permutations import block_sizes, identity, is_permutation
from permllm.testing import check_permutation_learner

LEARNERS = [ESparseShuffle(), ESparseShuffle(block=16), ESparseShuffle(deal=False)]


@pytest.mark.parametrize("learner", [*LEARNERS, ESparseShuffle(swaps=0)], ids=str)
def test_contract(learner: ESparseShuffle) -> None:
    check_permutation_learner(learner, never_worse=True)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Pattern, Tensor]:
    """Scores ``float64[C_out, C_in]``, some with ties and zeros, a pattern and an order."""
    m = draw(st.sampled_from([2, 3, 4]))
    pattern = Pattern(draw(st.integers(1, m - 1)), m)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 5)), m * draw(st.integers(1, 5))
    scores = torch.rand(shape, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        scores = (scores * 3).floor()
    return scores, pattern, torch.randperm(shape[1], generator=generator)


@settings(max_examples=50, deadline=None)
@given(problems())
def test_dealing_gives_every_group_one_channel_of_each_rank(
    problem: tuple[Tensor, Pattern, Tensor],
) -> None:
    scores, pattern, _ = problem
    order = naive_shuffle(scores, pattern)
    assert is_permutation(order, scores.shape[1])
    means = scores.mean(0)[order].view(-1, pattern.m)
    # Read card by card, the means fall throughout.
    assert (means.T.reshape(-1).diff() <= 1e-12).all()


def test_dealing_equal_channels_keeps_them_in_turn() -> None:
    order = naive_shuffle(torch.ones(2, 8), Pattern(2, 4))
    assert order.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def swapped_orders(order: Tensor, pattern: Pattern, block: int) -> Iterator[Tensor]:
    """Every order that one swap between two groups of one block leads to."""
    starts = [0, *itertools.accumulate(block_sizes(len(order), block, pattern.m))]
    for start, end in itertools.pairwise(starts):
        for p, q in itertools.combinations(range(start, end), 2):
            if p // pattern.m != q // pattern.m:
                swapped = order.clone()
                swapped[[p, q]] = order[[q, p]]
                yield swapped


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([2, 3]))
def test_after_the_block_shuffle_no_swap_within_a_block_helps(
    problem: tuple[Tensor, Pattern, Tensor], groups: int
) -> None:
    scores, pattern, order = problem
    block = groups * pattern.m
    found = block_shuffle(scores, pattern, order, block=block, swaps=1000)
    for before, after in zip(order.split(block), found.split(block), strict=True):
        assert sorted(before.tolist()) == sorted(after.tolist())
    reached = retained_score(scores, pattern, found)
    assert reached >= retained_score(scores, pattern, order)
    for swapped in swapped_orders(found, pattern, block):
        assert retained_score(scores, pattern, swapped) <= reached + 1e-5 * scores.sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 3))
def test_blocks_of_two_pairs_are_ordered_in_the_best_way(
    seed: int, outputs: int, blocks: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(outputs, 4 * blocks, generator=generator, dtype=torch.float64)
    found = block_shuffle(scores, Pattern(1, 2), identity(4 * blocks), block=4, swaps=1000)
    # One swap leads from any of the three ways to pair four channels to any other.
    for some in scores.split(4, 1):
        best = max(
            retained_score(some, Pattern(1, 2), torch.tensor(order))
            for order in itertools.permutations(range(4))
        )
        reached = retained_score(some, Pattern(1, 2), found[:4] % 4)
        torch.testing.assert_close(reached, best)
        found = found[4:]


@settings(max_examples=40, deadline=None)
@given(problems())
def test_a_single_swap_is_the_best_one(problem: tuple[Tensor, Pattern, Tensor]) -> None:
    scores, pattern, order = problem
    found = block_shuffle(scores, pattern, order, block=len(order), swaps=1)
    every = [order, *swapped_orders(order, pattern, len(order))]
    best = max(retained_score(scores, pattern, swapped) for swapped in every)
    torch.testing.assert_close(retained_score(scores, pattern, found), best)


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from(LEARNERS))
def test_never_retains_less_than_the_original_order_nor_more_than_there_is(
    problem: tuple[Tensor, Pattern, Tensor], learner: ESparseShuffle
) -> None:
    scores, pattern, _ = problem
    order = learner.shuffle(scores, pattern)
    assert is_permutation(order, scores.shape[1])
    none, reached = (retained_score(scores, pattern, permutation) for permutation in (None, order))
    kept = scores.shape[1] * pattern.n // pattern.m
    assert none - 1e-9 <= reached <= scores.topk(kept, 1).values.sum() + 1e-9


def test_an_order_that_dealing_would_spoil_is_kept() -> None:
    # Two channels of a group matter to each row; dealt out, three of a row meet in one group.
    scores = torch.tensor([[6.0, 4, 0, 0, 2, 0, 0, 0], [0, 0, 5, 3, 0, 1, 0, 0]])
    pattern = Pattern(2, 4)
    dealt = naive_shuffle(scores, pattern)
    assert retained_score(scores, pattern, dealt) < retained_score(scores, pattern) == 21
    order = ESparseShuffle(swaps=0).shuffle(scores, pattern)
    assert torch.equal(order, identity(8))


def test_both_steps_retain_more_on_uneven_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(32, 48, generator=generator) * torch.linspace(0, 3, 48).exp()
    none, dealt, swapped, both = (
        retained_score(scores, Pattern(2, 4), permutation).item()
        for permutation in (
            None,
            ESparseShuffle(swaps=0).shuffle(scores, Pattern(2, 4)),
            ESparseShuffle(deal=False, block=16).shuffle(scores, Pattern(2, 4)),
            ESparseShuffle(block=16).shuffle(scores, Pattern(2, 4)),
        )
    )
    assert none < dealt < both
    assert none < swapped < both


@pytest.mark.parametrize("scale", [0.0, 1e-30, 3e38])
def test_scores_of_any_size(scale: float) -> None:
    scores = torch.rand(8, 16, generator=torch.Generator().manual_seed(1)) * scale
    order = ESparseShuffle().shuffle(scores, Pattern(2, 4))
    assert is_permutation(order, 16)
    wide = scores.double()
    assert retained_score(wide, Pattern(2, 4), order) >= retained_score(wide, Pattern(2, 4))


def test_refuses_a_block_in_which_nothing_can_be_swapped() -> None:
    scores = torch.ones(2, 16)
    with pytest.raises(permllm.UserError, match="a block of 8 channels"):
        ESparseShuffle(block=8).shuffle(scores, Pattern(4, 8))
    ESparseShuffle(block=8, swaps=0).shuffle(scores, Pattern(4, 8))
    with pytest.raises(ValueError, match="block"):
        ESparseShuffle(block=1)
