"""Sums of batches are added, and groups without tokens count as white noise."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from permllm.core.statistics import GRAM, SQUARE_SUM, TOKENS
from permllm.models.statistics import Sums, add_sums, fill_unseen

NEEDS = (TOKENS, SQUARE_SUM, GRAM)


def sums_of(inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    return {need.name: need.partial(inputs) for need in NEEDS}


@given(st.integers(1, 5), st.integers(0, 100))
def test_batches_add_up_to_the_whole(parts: int, seed: int) -> None:
    inputs = torch.randn(12, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    total: Sums = {}
    for part in inputs.tensor_split(parts):
        add_sums(total, {"a": sums_of(part)})
    torch.testing.assert_close(total, {"a": sums_of(inputs)})


def test_a_share_is_not_changed_by_what_is_added_later() -> None:
    share = {"a": sums_of(torch.ones(3, 4))}
    total: Sums = {}
    add_sums(total, share)
    add_sums(total, share)
    assert float(share["a"]["tokens"]) == 3
    assert float(total["a"]["tokens"]) == 6


def test_unseen_groups_are_named_and_filled() -> None:
    kept = sums_of(torch.ones(3, 4))
    sums = {"seen": dict(kept), "unseen": sums_of(torch.ones(0, 4))}
    assert fill_unseen(sums) == ["unseen"]
    assert torch.equal(sums["unseen"]["square_sum"], torch.ones(4))
    assert torch.equal(sums["unseen"]["gram"], torch.eye(4))
    assert all(torch.equal(sums["seen"][name], kept[name]) for name in kept)
