"""Greedy swaps: the table of all swaps equals the definition, and the best are made first."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.patterns import Pattern, retained_score
from permllm.core.permutations import identity, is_permutation
from permllm.core.swaps import SwapTable, _exchanged, swap_search


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Pattern, int]:
    """Scores ``float64[C_out, C_in]``, some with ties and zeros, a pattern and a seed."""
    m = draw(st.sampled_from([2, 3, 4, 8]))
    pattern = Pattern(draw(st.integers(1, m - 1)), m)
    seed = draw(st.integers(0, 2**31))
    shape = draw(st.integers(1, 6)), m * draw(st.integers(1, 6))
    scores = torch.rand(shape, generator=generator(seed), dtype=torch.float64)
    if draw(st.booleans()):
        scores = (scores * 3).floor()
    return scores, pattern, seed


@settings(max_examples=30)
@given(problems())
def test_swap_table_tells_the_gain_of_every_swap(problem: tuple[Tensor, Pattern, int]) -> None:
    scores, pattern, seed = problem
    permutation = torch.randperm(scores.shape[1], generator=generator(seed))
    table = SwapTable.of(scores.T.contiguous(), pattern, identity(len(permutation))).reordered(
        permutation
    )
    fresh = SwapTable.of(scores.T.contiguous(), pattern, permutation)
    torch.testing.assert_close(table.worth, fresh.worth)
    before = retained_score(scores, pattern, permutation)
    pairs = [
        (p, q)
        for p, q in itertools.combinations(range(len(permutation)), 2)
        if p // pattern.m != q // pattern.m
    ][:60]
    if not pairs:
        return
    gains = []
    for p, q in pairs:
        swapped = permutation.clone()
        swapped[[p, q]] = permutation[[q, p]]
        gains.append(retained_score(scores, pattern, swapped) - before)
    torch.testing.assert_close(table.exact_gains(torch.tensor(pairs)), torch.stack(gains))


@settings(max_examples=30)
@given(problems())
def test_a_sweep_makes_the_best_swap_first_and_touches_no_group_twice(
    problem: tuple[Tensor, Pattern, int],
) -> None:
    scores, pattern, _ = problem
    table = SwapTable.of(scores.T.contiguous(), pattern, identity(scores.shape[1]))
    swaps = table.best_swaps(100)
    touched = (swaps // pattern.m).view(-1).tolist()
    assert len(touched) == len(set(touched))
    gains = table.exact_gains(swaps)
    assert (gains > 0).all()
    assert (gains.diff() <= 1e-9).all()
    every = torch.tensor(list(itertools.combinations(range(scores.shape[1]), 2)))
    every = every[every[:, 0] // pattern.m != every[:, 1] // pattern.m]
    if len(swaps):
        torch.testing.assert_close(gains[0], table.exact_gains(every).max())
        assert len(table.best_swaps(1)) == 1


@settings(max_examples=30)
@given(st.integers(0, 2**31))
def test_a_single_swap_is_the_best_of_all(seed: int) -> None:
    pattern = Pattern(2, 4)
    scores = torch.rand(5, 12, generator=generator(seed), dtype=torch.float64)
    start = torch.randperm(12, generator=generator(seed))
    tried = [start]
    for p, q in itertools.combinations(range(12), 2):
        order = start.clone()
        order[[p, q]] = start[[q, p]]
        tried.append(order)
    best = max(retained_score(scores, pattern, order) for order in tried)
    one = swap_search(scores, pattern, generator=generator(), swaps=1, start=start)
    torch.testing.assert_close(retained_score(scores, pattern, one), best)
    assert int((one != start).sum()) in (0, 2)


def test_no_more_swaps_are_made_than_asked_for() -> None:
    pattern = Pattern(2, 4)
    scores = torch.rand(8, 64, generator=generator())
    start = torch.randperm(64, generator=generator(1))
    orders = [
        swap_search(scores, pattern, generator=generator(), swaps=swaps, start=start)
        for swaps in range(20)
    ]
    assert torch.equal(orders[0], start)
    for swaps, order in enumerate(orders):
        # With two places a swap at most, so many have another channel.
        assert int((order != start).sum()) <= 2 * swaps
    retained = [retained_score(scores, pattern, order).item() for order in orders]
    assert all(fewer < more for fewer, more in itertools.pairwise(retained))


def test_without_a_start_it_is_the_identity() -> None:
    scores = torch.rand(8, 16, generator=generator())
    order = swap_search(scores, Pattern(2, 4), generator=generator(), swaps=0)
    assert torch.equal(order, identity(16))


def test_a_single_group_stays_as_it_is() -> None:
    scores, start = torch.rand(8, 4, generator=generator()), torch.tensor([2, 0, 3, 1])
    order = swap_search(scores, Pattern(2, 4), generator=generator(), escapes=3, start=start)
    assert torch.equal(order, start)


def test_two_groups_are_searched() -> None:
    scores = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 1.0, 1.0, 1.0]])
    order = swap_search(scores, Pattern(2, 4), generator=generator())
    assert retained_score(scores, Pattern(2, 4), order) == 9 + 8 + 7 + 6


def test_by_default_nothing_is_random() -> None:
    scores, rng = torch.rand(8, 32, generator=generator()), generator()
    before = rng.get_state()
    swap_search(scores, Pattern(2, 4), generator=rng)
    assert torch.equal(rng.get_state(), before)
    swap_search(scores, Pattern(2, 4), generator=rng, escapes=1)
    assert not torch.equal(rng.get_state(), before)


@pytest.mark.parametrize(("channels", "places"), [(8, 2), (32, 2), (48, 3), (64, 4)])
def test_an_escape_moves_the_channels_of_a_few_places(channels: int, places: int) -> None:
    before = torch.randperm(channels, generator=generator(1))
    seen = set()
    for seed in range(20):
        after = _exchanged(before, generator(seed))
        assert is_permutation(after, channels)
        moved = (after != before).nonzero().flatten().tolist()
        assert len(moved) == places
        seen.update(moved)
    assert len(seen) > places


def escapes_in(monkeypatch: pytest.MonkeyPatch, **options: object) -> int:
    """How many escapes a search makes, with a clock that goes on by a second at every look."""
    clock, calls = itertools.count(100), []

    def count(order: Tensor, rng: torch.Generator) -> Tensor:
        calls.append(order)
        return _exchanged(order, rng)

    monkeypatch.setattr("permllm.core.durations.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("permllm.core.swaps._exchanged", count)
    scores = torch.rand(8, 16, generator=generator())
    swap_search(scores, Pattern(2, 4), generator=generator(), **options)  # type: ignore[arg-type]
    return len(calls)


def test_escapes_are_as_many_as_asked_for_or_go_on_until_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert escapes_in(monkeypatch, escapes=3) == 3
    assert escapes_in(monkeypatch, time_limit=0.0, escapes=3) == 0
    short, long = (escapes_in(monkeypatch, time_limit=limit) for limit in (50.0, 500.0))
    assert 1 < short < long


def test_gains_are_summed_in_float64() -> None:
    scores = torch.rand(8, 4000, generator=generator())
    table = SwapTable.of(scores, Pattern(2, 4), identity(8))
    before = retained_score(scores.T.double(), Pattern(2, 4))
    order = torch.tensor([4, 1, 2, 3, 0, 5, 6, 7])
    after = retained_score(scores.T.double(), Pattern(2, 4), order)
    gain = table.exact_gains(torch.tensor([[0, 4]]))
    # Random numbers are multiples of 2 ** -24, so that their differences are exact.
    torch.testing.assert_close(gain[0], after - before, rtol=0, atol=1e-9)


def test_what_retains_no_more_is_not_kept() -> None:
    start = torch.randperm(16, generator=generator())
    order = swap_search(
        torch.ones(3, 16), Pattern(2, 4), generator=generator(), escapes=3, start=start
    )
    assert torch.equal(order, start)


@pytest.mark.parametrize("limit", [1, 5, 30])
def test_no_more_sweeps_are_begun_than_the_time_has_looks(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Nor after an escape, with a clock that goes on by a second at every look."""
    clock, sweeps, best_swaps = itertools.count(100), [], SwapTable.best_swaps

    def count(table: SwapTable, most: int) -> Tensor:
        sweeps.append(most)
        return best_swaps(table, most)

    monkeypatch.setattr("permllm.core.durations.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(SwapTable, "best_swaps", count)
    scores = torch.rand(8, 64, generator=generator())
    swap_search(scores, Pattern(2, 4), generator=generator(), time_limit=float(limit))
    looks = next(clock) - 100 - 2  # one at the beginning, and one that ends the search
    assert len(sweeps) < limit
    assert looks <= limit


def test_at_the_limit_no_sweep_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.rand(8, 16, generator=generator())
    monkeypatch.setattr("permllm.core.durations.time.monotonic", lambda: 100.0)
    order = swap_search(scores, Pattern(2, 4), generator=generator(), time_limit=0.0)
    assert torch.equal(order, identity(16))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
def test_refuses_what_is_no_score(bad: float) -> None:
    scores = torch.ones(2, 8)
    scores[1, 3] = bad
    with pytest.raises(ValueError, match=r"^scores must be finite and not negative$"):
        swap_search(scores, Pattern(2, 4), generator=generator())
    with pytest.raises(ValueError, match="does not fit 6 channels"):
        swap_search(torch.ones(2, 6), Pattern(2, 4), generator=generator())


def test_tables_are_made_on_the_scores_device() -> None:
    scores = torch.rand(16, 5, generator=generator())
    order = torch.randperm(16, generator=generator())
    plain = SwapTable.of(scores, Pattern(2, 4), order)
    with torch.device("meta"):
        table = SwapTable.of(scores, Pattern(2, 4), order)
        swaps = table.best_swaps(3)
        gains = table.exact_gains(swaps)
    assert torch.equal(table.worth, plain.worth)
    assert torch.equal(swaps, plain.best_swaps(3))
    assert torch.equal(gains, plain.exact_gains(swaps))
