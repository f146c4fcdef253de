"""Groups cut into blocks: the cut, what is stacked over them, and the way back."""

from __future__ import annotations

import itertools

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permllm.contexts.window import Window
from permllm.core.patterns import is_nm
from permllm.core.permutations import identity, is_permutation
from permllm.testing.windows import toy_window
from permllm.training.blocks import BlockedGroups, Blocks, harden


def blocked(window: Window, block: int = 12, *, normalise: bool = True) -> BlockedGroups:
    starts = {name: identity(group.channels) for name, group in window.groups.items()}
    return BlockedGroups.cut(window, starts, lambda channels: block, normalise_scores=normalise)


def random_soft(groups: BlockedGroups, seed: int = 2) -> Blocks:
    generator = torch.Generator().manual_seed(seed)
    return groups.blocks(lambda count, size: torch.rand(count, size, size, generator=generator))


def test_blocks_cover_the_channels_and_keep_groups_of_m_whole() -> None:
    window = toy_window()
    for group in blocked(window).groups:
        assert sum(size * count for size, count in group.runs) == window.groups[group.name].channels
        assert all(size % group.pattern.m == 0 for size, _ in group.runs)


def test_the_size_of_blocks_may_depend_on_the_channels() -> None:
    window = toy_window()
    starts = {name: identity(group.channels) for name, group in window.groups.items()}
    halves = BlockedGroups.cut(
        window, starts, lambda channels: channels // 2, normalise_scores=True
    )
    assert all(group.runs == ((len(group.start) // 2, 2),) for group in halves.groups)


@pytest.mark.parametrize("normalise", [True, False])
def test_scores_are_put_in_start_order_and_may_be_divided_by_their_mean(normalise: bool) -> None:
    window = toy_window()
    generator = torch.Generator().manual_seed(1)
    starts = {
        name: torch.randperm(group.channels, generator=generator)
        for name, group in window.groups.items()
    }
    groups = BlockedGroups.cut(window, starts, lambda channels: 8, normalise_scores=normalise)
    for group in groups.groups:
        for linear, scores in group.scores.items():
            expected = window.scores(linear)[:, starts[group.name]].T
            expected = expected / expected.mean() if normalise else expected
            torch.testing.assert_close(scores, expected)
            assert torch.equal(group.weights[linear], window.weight(linear).T)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_hard_permutations_fit_best_of_all(seed: int, size: int) -> None:
    soft = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)).double()
    hard = harden(Blocks({size: soft.requires_grad_()})).by_size[size]
    places = range(size)
    for fit, order in zip(soft.tolist(), hard.tolist(), strict=True):
        best = max(
            sum(fit[channels[place]][place] for place in places)
            for channels in itertools.permutations(places)
        )
        assert sum(fit[order[place]][place] for place in places) == pytest.approx(best)


def test_a_map_takes_the_blocks_of_each_size_together() -> None:
    one = Blocks({2: torch.ones(3, 2), 4: torch.full((1, 4), 2.0)})
    added = one.map(torch.add, one)
    assert [stack.unique().item() for stack in added.tensors] == [2.0, 4.0]


def test_each_group_gets_its_runs_back() -> None:
    groups = blocked(toy_window())
    stacked = groups.blocks(lambda count, size: torch.arange(count).view(-1, 1))
    runs = groups.of_groups(stacked)
    for group, pieces in zip(groups.groups, runs, strict=True):
        assert [len(piece) for piece in pieces] == [count for _, count in group.runs]
    for size, whole in stacked.by_size.items():
        pieces = [
            piece
            for group, run in zip(groups.groups, runs, strict=True)
            for (each, _), piece in zip(group.runs, run, strict=True)
            if each == size
        ]
        assert torch.equal(torch.cat(pieces), whole)


def test_what_groups_have_is_made_for_each_size_of_blocks() -> None:
    groups = blocked(toy_window())
    sizes = {size for group in groups.groups for size, _ in group.runs}
    made = groups.per_group(lambda count, size: torch.tensor([count, size]))
    assert {size: tensor.tolist() for size, tensor in made.by_size.items()} == {
        size: [sum(size in dict(group.runs) for group in groups.groups), size] for size in sizes
    }


def test_what_a_group_has_is_repeated_for_its_blocks() -> None:
    groups = blocked(toy_window())
    numbers = groups.per_group(lambda count, size: torch.arange(count).float())
    repeated = groups.repeated(numbers)
    for size in numbers.by_size:
        having = [group for group in groups.groups if size in dict(group.runs)]
        expected = [
            float(i) for i, group in enumerate(having) for _ in range(dict(group.runs)[size])
        ]
        assert repeated.by_size[size].shape == (len(expected), 1, 1)
        assert repeated.by_size[size].flatten().tolist() == expected


def test_numbers_are_repeated_on_their_device() -> None:
    groups = blocked(toy_window())
    numbers = groups.per_group(lambda count, size: torch.arange(count).float())
    with torch.device("meta"):
        elsewhere = groups.repeated(numbers)
    for size, repeated in groups.repeated(numbers).by_size.items():
        assert torch.equal(elsewhere.by_size[size], repeated)


def test_weights_are_pruned_in_the_hard_permutation() -> None:
    window = toy_window()
    groups = blocked(window)
    soft = random_soft(groups)
    hard = harden(soft)
    weights, permutations = groups.masked_weights(soft, hard), groups.permutations(hard)
    assert list(weights) == window.linears
    for group in groups.groups:
        permutation = permutations[group.name]
        assert is_permutation(permutation, window.groups[group.name].channels)
        for linear in group.weights:
            assert is_nm(weights[linear][:, permutation], group.pattern)
            kept = weights[linear] != 0
            assert torch.equal(weights[linear][kept], window.weight(linear)[kept])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weights_are_rounded_once_where_products_are_in_another_type(
    dtype: torch.dtype | None,
) -> None:
    window = toy_window()
    starts = {name: identity(group.channels) for name, group in window.groups.items()}
    groups = BlockedGroups.cut(
        window, starts, lambda channels: 8, normalise_scores=False, dtype=dtype
    )
    for group in groups.groups:
        for linear, weight in group.weights.items():
            expected = window.weight(linear).T.to(dtype or window.weight(linear).dtype)
            assert weight.dtype == expected.dtype
            assert torch.equal(weight, expected)
            assert weight.is_contiguous()
            assert group.scores[linear].dtype == window.weight(linear).dtype
            assert group.scores[linear].is_contiguous()


def test_scores_of_zero_stay_zero_where_they_are_divided_by_their_mean() -> None:
    window = toy_window()
    window.tensors = attrs.evolve(
        window.tensors,  # type: ignore[type-var]
        all_scores={name: torch.zeros_like(window.scores(name)) for name in window.linears},
    )
    for group in blocked(window).groups:
        assert all(not scores.any() for scores in group.scores.values())


@pytest.mark.parametrize("soft_mask", [True, False])
def test_the_gradient_is_the_one_that_is_asked_for(soft_mask: bool) -> None:
    """By default the paper's."""
    groups = blocked(toy_window(), block=8)
    gradients = []
    for options in ({}, {"soft_mask": soft_mask}):
        soft = random_soft(groups).map(lambda each: each.requires_grad_())
        weights = groups.masked_weights(soft, harden(soft), **options)
        total = torch.stack([weight.square().sum() for weight in weights.values()]).sum()
        gradients.append(torch.autograd.grad(total, soft.tensors))
    same = [torch.equal(one, two) for one, two in zip(*gradients, strict=True)]
    assert all(same) if soft_mask else not any(same)
