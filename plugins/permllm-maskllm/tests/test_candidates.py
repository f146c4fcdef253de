"""Candidates against all combinations, and ranked places against sorting group by group."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from permllm_maskllm.candidates import candidate_masks, ranked_places, similarity

from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert

PATTERNS = [Pattern(2, 4), Pattern(1, 4), Pattern(3, 4), Pattern(1, 2), Pattern(4, 8)]


@given(st.integers(1, 8), st.integers(1, 3))
def test_candidates_are_all_masks_the_likeliest_first(m: int, share: int) -> None:
    pattern = Pattern(n := max(1, m * share // 4), max(m, n + 1))
    table = candidate_masks(pattern, 10_000)
    found = [tuple(row.nonzero().flatten().tolist()) for row in table]
    every = list(itertools.combinations(range(pattern.m), pattern.n))
    assert found == sorted(every, key=lambda kept: (sum(kept), kept))
    assert len(found) == math.comb(pattern.m, pattern.n)


@given(st.sampled_from(PATTERNS), st.integers(1, 80))
def test_a_limit_keeps_the_first(pattern: Pattern, limit: int) -> None:
    assert torch.equal(candidate_masks(pattern, limit), candidate_masks(pattern, 10_000)[:limit])


def test_a_limit_keeps_large_patterns_small() -> None:
    table = candidate_masks(Pattern(32, 64), 16)
    assert table.shape == (16, 64)
    assert (table.sum(1) == 32).all()
    assert torch.equal(table[0], (torch.arange(64) < 32).float())


def test_the_six_masks_of_2_4() -> None:
    rows = {tuple(row) for row in candidate_masks(Pattern(2, 4), 16).int().tolist()}
    # Equation 2 of the paper.
    assert rows == {
        (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 0, 1), (0, 1, 1, 0), (0, 0, 1, 1)
    }  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_similarity_is_centred_and_highest_for_the_one_shot_mask(pattern: Pattern) -> None:
    table = candidate_masks(pattern, 10_000)
    found = similarity(table, pattern)
    assert torch.equal(found, table @ table[0] - (table @ table[0]).mean())
    assert found.argmax() == 0
    assert (found[1:] < found[0]).all()


@given(st.sampled_from(PATTERNS), st.integers(1, 5), st.integers(1, 6), st.integers(0, 100))
def test_ranked_places_sort_each_group(pattern: Pattern, rows: int, groups: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels = groups * pattern.m
    # Few different scores, so that many are equal.
    scores = torch.randint(4, (rows, channels), generator=generator).double()
    permutation = torch.randperm(channels, generator=generator)
    places = ranked_places(scores, permutation, pattern)
    ranked = torch.empty_like(scores).scatter_(1, places.long(), scores)
    for row in range(rows):
        for group in range(groups):
            span = slice(group * pattern.m, (group + 1) * pattern.m)
            best = sorted(scores[row, permutation[span]].tolist(), reverse=True)
            assert ranked[row, span].tolist() == best
    # The first N ranks are the one-shot mask, ties included.
    kept = places % pattern.m < pattern.n
    assert torch.equal(kept, nm_mask(scores[:, permutation], pattern)[:, invert(permutation)])


def test_places_are_kept_in_as_few_bytes_as_hold_them() -> None:
    for channels, expected in ((4, torch.int16), (32_764, torch.int16), (32_768, torch.int32)):
        places = ranked_places(torch.zeros(1, channels), torch.arange(channels), Pattern(2, 4))
        assert places.dtype == expected
        assert torch.equal(places[0].long(), torch.arange(channels))
