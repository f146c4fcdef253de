"""Groups cut into blocks: the cut, what is stacked over them, and the way back."""

from __future__ import annotations

import torch

from permllm.contexts.window import Window
from permllm.core.patterns import is_nm
from permllm.core.permutations import identity
from permllm.testing.windows import toy_window
from permllm.training.blocks import (
    BlockedGroup,
    block_counts,
    harden,
    masked_weights,
    orders,
    unstacked,
)


def blocked(window: Window, block: int = 12) -> list[BlockedGroup]:
    return [
        BlockedGroup.of(window, name, identity(group.channels), block=block, normalise_scores=True)
        for name, group in window.groups.items()
    ]


def test_blocks_cover_the_channels_and_keep_groups_of_m_whole() -> None:
    window = toy_window()
    for group in blocked(window):
        assert sum(size * count for size, count in group.runs) == window.groups[group.name].channels
        assert all(size % group.pattern.m == 0 for size, _ in group.runs)


def test_hard_permutations_maximise_the_soft_ones() -> None:
    soft = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1))
    local = harden({4: soft})[4]
    identity = torch.arange(4).expand(3, 4)
    kept = soft.gather(1, local.unsqueeze(1)).sum()
    assert kept >= soft.gather(1, identity.unsqueeze(1)).sum()


def test_unstacking_gives_each_group_its_runs() -> None:
    groups = blocked(toy_window())
    stacked = {
        size: torch.arange(count).view(-1, 1) for size, count in block_counts(groups).items()
    }
    runs = unstacked(groups, stacked)
    for group, pieces in zip(groups, runs, strict=True):
        assert [len(piece) for piece in pieces] == [count for _, count in group.runs]
    for size, whole in stacked.items():
        pieces = [
            piece
            for group, run in zip(groups, runs, strict=True)
            for (each, _), piece in zip(group.runs, run, strict=True)
            if each == size
        ]
        assert torch.equal(torch.cat(pieces), whole)


def test_weights_are_pruned_in_the_hard_order() -> None:
    window = toy_window()
    groups = blocked(window)
    generator = torch.Generator().manual_seed(2)
    soft = {
        size: torch.rand(count, size, size, generator=generator)
        for size, count in block_counts(groups).items()
    }
    local = harden(soft)
    weights, permutations = masked_weights(groups, soft, local), orders(groups, local)
    assert list(weights) == window.linears
    for group in groups:
        for linear in group.weights:
            permuted = weights[linear][:, permutations[group.name]]
            assert is_nm(permuted, group.pattern)
            kept = weights[linear] != 0
            assert torch.equal(weights[linear][kept], window.weight(linear)[kept])
