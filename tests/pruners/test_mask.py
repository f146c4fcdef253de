"""The mask pruner keeps the highest scores and changes nothing else."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from permllm.core.patterns import Pattern, nm_mask
from permllm.pruners import permllm_pruners
from permllm.pruners.mask import Mask
from permllm.testing import check_pruner

PATTERNS = [Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(3, 4), Pattern(1, 2)]


def test_contract() -> None:
    check_pruner(Mask())


def test_built_in_pruners_come_through_the_hook() -> None:
    assert [pruner.name for pruner in permllm_pruners()] == [
        "mask",
        "sparsegpt",
        "learned-mask",
        "distil",
    ]


@given(st.integers(0, 1000), st.sampled_from(PATTERNS))
def test_keeps_the_highest_scores_unchanged(seed: int, pattern: Pattern) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(12, 48, generator=generator, dtype=torch.float64)
    scores = torch.rand(12, 48, generator=generator)  # not those of the weight's size
    pruned, mask = Mask().prune(weight, scores, pattern, {})
    assert torch.equal(mask, nm_mask(scores, pattern))
    assert torch.equal(pruned, torch.where(mask, weight, 0.0))
