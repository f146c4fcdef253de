"""What every pruner must do."""

from __future__ import annotations

import torch

from permllm.components import Pruner
from permllm.core.patterns import Pattern, is_nm
from permllm.testing.expect import expect, expect_equal
from permllm.testing.linears import ToyLinear, toy_linears

PATTERNS = (Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(1, 2), Pattern(3, 8))
"""Patterns whose M divides all toy linears' channels."""


def check_pruner(pruner: Pruner) -> None:
    """Fail unless a pruner keeps to its interface.

    Weight and mask have the given weight's shape, the weight its type too; the mask
    keeps at most N of every M; the weight is finite, and zero where the mask is False; the
    same comes out every time, and the arguments stay as they are. This is checked for
    several patterns, shapes and types, rows and columns of zeros, and channels that
    never fire.
    """
    for toy in toy_linears():
        for pattern in PATTERNS:
            _check(pruner, toy, pattern)


def _check(pruner: Pruner, toy: ToyLinear, pattern: Pattern) -> None:
    name, on = f"pruner '{pruner.name}'", f"for {toy.what} and {pattern}"
    sums, weight = toy.statistics(pruner.needs), toy.weight.clone()
    scores = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
    kept, kept_scores = {key: value.clone() for key, value in sums.items()}, scores.clone()
    pruned, mask = pruner.prune(weight, scores, pattern, sums)
    expect(
        pruned.shape == weight.shape and pruned.dtype == weight.dtype,
        f"{name}: the weight must keep its shape and type {on}, "
        f"not become {tuple(pruned.shape)} in {pruned.dtype}",
    )
    expect(
        mask.shape == weight.shape and mask.dtype == torch.bool,
        f"{name}: the mask must be a BoolTensor of the weight's shape {on}",
    )
    expect(is_nm(mask, pattern), f"{name}: the mask must keep at most N of every M {on}")
    expect(pruned.isfinite().all(), f"{name}: the weight must be finite {on}")
    expect(
        not pruned[~mask].count_nonzero(),
        f"{name}: the weight must be zero where the mask is False {on}",
    )
    expect_equal(weight, toy.weight, f"{name}: prune() must leave the given weight as it is")
    expect_equal(scores, kept_scores, f"{name}: prune() must leave the scores as they are")
    for key, value in kept.items():
        expect_equal(sums[key], value, f"{name}: prune() must leave statistic '{key}' as it is")
    again, again_mask = pruner.prune(weight, scores, pattern, sums)
    expect_equal(again, pruned, f"{name}: the weight must be the same every time {on}")
    expect_equal(again_mask, mask, f"{name}: the mask must be the same every time {on}")
