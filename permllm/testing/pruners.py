"""What every pruner must do."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch

from permllm.components import Pruner
from permllm.contexts.window import Window
from permllm.core.patterns import Pattern, is_nm, nm_mask
from permllm.core.permutations import invert
from permllm.testing.expect import expect, expect_equal
from permllm.testing.linears import ToyLinear, toy_linears
from permllm.testing.windows import MemoryCheckpoints, toy_windows

PATTERNS = (Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(1, 2), Pattern(3, 8))
"""Patterns whose M divides all toy linears' channels."""


def check_pruner(pruner: Pruner) -> None:
    """Fail unless a pruner keeps to its interface.

    Weight and mask have the given weight's shape, the weight its type too; the mask
    keeps at most N of every M; the weight is finite, and zero where the mask is False; the
    same comes out every time, and the arguments stay as they are. This is checked for
    several patterns, shapes and types, rows and columns of zeros, and channels that
    never fire.

    A pruner that refines scores gives finite, non-negative ones of the weight's shape, for
    linears of the window, the same whenever the window is the same, and leaves the model,
    the metric's scores and the global random state alone. This is checked for windows of
    several patterns under random permutations; keep its budget small. One that updates
    weights keeps their shape, type and zeros, and is held to the same otherwise. From what it
    keeps (``window.keep``) it goes on to the same.
    """
    for toy in toy_linears():
        for pattern in PATTERNS:
            _check(pruner, toy, pattern)
    if type(pruner).refine is not Pruner.refine:
        _check_refine(pruner)
    if type(pruner).update is not Pruner.update:
        _check_update(pruner)


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


def _check_refine(pruner: Pruner) -> None:
    name = f"pruner '{pruner.name}'"
    for window, again in toy_windows(sequences=_sequences(pruner), needs=pruner.needs):
        permutations = _random_permutations(window)
        kept = {group: permutation.clone() for group, permutation in permutations.items()}
        before = {linear: window.weight(linear).clone() for linear in window.linears}
        given = {linear: window.scores(linear).clone() for linear in window.linears}
        state = torch.random.get_rng_state()
        window.checkpoints = checkpoints = MemoryCheckpoints()
        refined = pruner.refine(window, permutations)
        expect_equal(
            torch.random.get_rng_state(),
            state,
            f"{name}: refine() must draw from a generator seeded with window.seed, "
            "not from torch's global one",
        )
        for linear, scores in refined.items():
            _check_refined(name, window, linear, scores)
        for linear in window.linears:
            expect_equal(
                window.weight(linear), before[linear], f"{name}: refine() changed {linear}"
            )
            expect_equal(
                window.scores(linear),
                given[linear],
                f"{name}: refine() changed the metric's scores",
            )
        for group, permutation in permutations.items():
            expect_equal(permutation, kept[group], f"{name}: refine() changed the permutations")
        expect(
            _same(pruner.refine(again, kept), refined),
            f"{name}: refine() gave two equal windows different scores",
        )
        for interrupted in checkpoints.interrupted():
            resumed = pruner.refine(attrs.evolve(again, checkpoints=interrupted), kept)
            expect(
                _same(resumed, refined),
                f"{name}: refine() goes on from what it kept to other scores",
            )


def _check_refined(name: str, window: Window, linear: str, scores: torch.Tensor) -> None:
    expect(
        linear in window.linears, f"{name}: refine() gave scores for {linear!r}, which is no linear"
    )
    shape = window.weight(linear).shape
    expect(
        isinstance(scores, torch.Tensor) and scores.shape == shape,
        f"{name}: refine() must give {linear} scores of its shape {tuple(shape)}",
    )
    expect(bool(scores.isfinite().all()), f"{name}: the scores that refine() gives must be finite")
    expect(
        bool((scores >= 0).all()), f"{name}: the scores that refine() gives must not be negative"
    )


def _check_update(pruner: Pruner) -> None:
    name = f"pruner '{pruner.name}'"
    for window, again in toy_windows(sequences=_sequences(pruner), needs=pruner.needs):
        weights = _pruned_weights(window, _random_permutations(window))
        kept = {linear: weight.clone() for linear, weight in weights.items()}
        before = {linear: window.weight(linear).clone() for linear in window.linears}
        state = torch.random.get_rng_state()
        window.checkpoints = checkpoints = MemoryCheckpoints()
        updated = pruner.update(window, weights)
        expect_equal(
            torch.random.get_rng_state(),
            state,
            f"{name}: update() must draw from a generator seeded with window.seed, "
            "not from torch's global one",
        )
        for linear, weight in updated.items():
            expect(
                linear in window.linears,
                f"{name}: update() gave a weight for {linear!r}, which is no linear",
            )
            expect(
                weight.shape == kept[linear].shape and weight.dtype == kept[linear].dtype,
                f"{name}: update() must keep the shape and type of {linear}",
            )
            expect(weight.isfinite().all(), f"{name}: update() gave {linear} NaN or infinity")
            expect(
                not weight[kept[linear] == 0].count_nonzero(),
                f"{name}: update() must leave what is cut from {linear} at zero",
            )
        for linear in window.linears:
            expect_equal(weights[linear], kept[linear], f"{name}: update() changed its argument")
            expect_equal(
                window.weight(linear), before[linear], f"{name}: update() changed {linear}"
            )
        expect(
            _same(pruner.update(again, kept), updated),
            f"{name}: update() gave two equal windows different weights",
        )
        for interrupted in checkpoints.interrupted():
            resumed = pruner.update(attrs.evolve(again, checkpoints=interrupted), kept)
            expect(
                _same(resumed, updated),
                f"{name}: update() goes on from what it kept to other weights",
            )


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _sequences(pruner: Pruner) -> int:
    """Learning sequences of a window that are enough for a pruner."""
    asked = pruner.sequences(4)
    expect(
        isinstance(asked, int) and asked >= 1,
        f"pruner '{pruner.name}': sequences(4) must be a whole number from 1, not {asked!r}",
    )
    return max(8, asked)


def _random_permutations(window: Window) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randperm(group.channels, generator=generator)
        for name, group in window.groups.items()
    }


def _pruned_weights(
    window: Window, permutations: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The window's weights, cut by the metric's scores."""
    weights = {}
    for name, group in window.groups.items():
        for linear in group.linears:
            mask = nm_mask(window.scores(linear)[:, permutations[name]], window.pattern(name))
            weights[linear] = window.weight(linear) * mask[:, invert(permutations[name])]
    return weights
