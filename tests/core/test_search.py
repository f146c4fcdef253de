"""The searches never lose retained score, and their tables equal the definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.patterns import Pattern, retained_score
from permllm.core.permutations import identity, is_permutation
from permllm.core.retained import channelwise, nth_highest, pairwise_max_sums, thresholds
from permllm.core.search import ROUNDS, Plan, heuristic_permutation, plan, refine_slot, search
from permllm.core.swaps import SwapTable, swap_search
from permllm.core.tabu import Walks, tabu_search, walks_at_once


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


def upper_bound(scores: Tensor, pattern: Pattern) -> Tensor:
    return scores.topk(scores.shape[1] * pattern.n // pattern.m, 1).values.sum()


@settings(max_examples=40, deadline=None)
@given(problems())
def test_heuristic_deals_one_channel_of_each_rank(problem: tuple[Tensor, Pattern, int]) -> None:
    scores, pattern, _ = problem
    permutation = heuristic_permutation(scores, pattern)
    groups = pattern.groups(scores.shape[1])
    assert is_permutation(permutation, scores.shape[1])
    sums = scores.sum(0)[permutation].view(groups, pattern.m)
    for higher, lower in itertools.pairwise(sums.unbind(1)):
        assert higher.min() >= lower.max() - 1e-12
    for slot, run in enumerate(sums.unbind(1)):
        falling = run if slot % 2 == 0 else run.flip(0)
        assert (falling.diff() <= 1e-12).all()


@settings(max_examples=60, deadline=None)
@given(problems(), st.data())
def test_every_round_is_monotone_and_counts_its_gain(
    problem: tuple[Tensor, Pattern, int], data: st.DataObject
) -> None:
    scores, pattern, seed = problem
    groups = pattern.groups(scores.shape[1])
    permutation = torch.randperm(scores.shape[1], generator=generator(seed))
    for _ in range(4):
        slots = torch.tensor(
            data.draw(st.lists(st.integers(0, pattern.m - 1), min_size=groups, max_size=groups))
        )
        before = retained_score(scores, pattern, permutation)
        refined, gain = refine_slot(scores, permutation, pattern, slots)
        assert is_permutation(refined, len(permutation))
        assert gain >= 0
        torch.testing.assert_close(retained_score(scores, pattern, refined), before + gain)
        kept = torch.arange(pattern.m) != slots.unsqueeze(1)
        assert torch.equal(refined.view_as(kept)[kept], permutation.view_as(kept)[kept])
        permutation = refined


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1, 2), (1, 3), (2, 3), (2, 4), (3, 4)]))
def test_a_round_fills_the_free_places_in_the_best_way(seed: int, nm: tuple[int, int]) -> None:
    pattern, groups = Pattern(*nm), 4
    scores = torch.rand(5, groups * pattern.m, generator=generator(seed), dtype=torch.float64)
    permutation = torch.randperm(scores.shape[1], generator=generator(seed))
    slots = torch.randint(pattern.m, (groups,), generator=generator(seed))
    refined, _ = refine_slot(scores, permutation, pattern, slots)
    places = permutation.view(groups, pattern.m)
    best = torch.tensor(0.0, dtype=torch.float64)
    for order in itertools.permutations(range(groups)):
        tried = places.clone()
        rows = torch.arange(groups)
        tried[rows, slots] = places[rows, slots][list(order)]
        best = torch.maximum(best, retained_score(scores, pattern, tried.view(-1)))
    torch.testing.assert_close(retained_score(scores, pattern, refined), best)


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(0, 3), st.integers(0, 20), st.booleans())
def test_searches_lie_between_identity_and_the_upper_bound(
    problem: tuple[Tensor, Pattern, int], rounds: int, steps: int, refine: bool
) -> None:
    scores, pattern, seed = problem
    none = retained_score(scores, pattern)
    found = search(
        scores, pattern, generator=generator(seed), rounds=rounds, steps=steps, refine=refine
    )
    swapped = swap_search(scores, pattern, generator=generator(seed), escapes=steps % 3)
    for permutation in (found, swapped):
        assert is_permutation(permutation, scores.shape[1])
        retained = retained_score(scores, pattern, permutation)
        assert none - 1e-9 <= retained <= upper_bound(scores, pattern) + 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_refined_beats_heuristic_beats_nothing_on_uneven_channels(dtype: torch.dtype) -> None:
    scale = torch.linspace(0, 3, 48).exp()
    scores = (torch.rand(32, 48, generator=generator()) * scale).to(dtype)
    pattern = Pattern(2, 4)
    none, heuristic, fixed, rounds, steps, swaps = (
        retained_score(scores, pattern, permutation).item()
        for permutation in (
            None,
            heuristic_permutation(scores, pattern),
            search(scores, pattern, generator=generator(), rounds=0, steps=0),
            search(scores, pattern, generator=generator(), rounds=100, steps=0),
            search(scores, pattern, generator=generator(), rounds=100, steps=100),
            swap_search(scores, pattern, generator=generator()),
        )
    )
    assert none < heuristic < fixed < rounds < steps
    assert none < swaps


def test_small_problems_are_solved_to_the_optimum() -> None:
    pattern = Pattern(2, 4)
    for seed in range(5):
        scores = torch.rand(6, 8, generator=generator(seed), dtype=torch.float64)
        best = max(
            retained_score(scores, pattern, torch.tensor([*half, *(set(range(8)) - set(half))]))
            for half in itertools.combinations(range(8), 4)
        )
        found = search(scores, pattern, generator=generator(), rounds=5, steps=50)
        swapped = swap_search(scores, pattern, generator=generator(), escapes=50)
        torch.testing.assert_close(retained_score(scores, pattern, found), best)
        torch.testing.assert_close(retained_score(scores, pattern, swapped), best)


@pytest.mark.parametrize("find", [search, swap_search])
def test_same_seed_gives_the_same_order_and_start_is_never_lost(find) -> None:  # type: ignore[no-untyped-def]
    scores, pattern = torch.rand(16, 32, generator=generator(3)), Pattern(2, 4)
    extra = {"rounds": 20, "steps": 30} if find is search else {"escapes": 3}
    first, second = (find(scores, pattern, generator=generator(5), **extra) for _ in range(2))
    assert torch.equal(first, second)
    again = find(scores, pattern, generator=generator(6), start=first, **extra)
    assert retained_score(scores, pattern, again) >= retained_score(scores, pattern, first)


@pytest.mark.parametrize("find", [search, swap_search])
def test_time_limit_ends_the_search(find) -> None:  # type: ignore[no-untyped-def]
    scores, pattern = torch.rand(8, 32, generator=generator()), Pattern(1, 4)
    at_once = find(scores, pattern, generator=generator(), time_limit=0.0)
    longer = find(scores, pattern, generator=generator(), time_limit=0.2)
    values = [
        retained_score(scores, pattern, permutation) for permutation in (None, at_once, longer)
    ]
    assert values[0] <= values[1] < values[2]


@pytest.mark.parametrize("find", [search, swap_search])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30, 3e38])
def test_scores_of_any_size(find, scale: float) -> None:  # type: ignore[no-untyped-def]
    scores = torch.rand(8, 16, generator=generator()) * scale
    permutation = find(scores, Pattern(2, 4), generator=generator())
    assert is_permutation(permutation, 16)
    wide = scores.double()
    assert retained_score(wide, Pattern(2, 4), permutation) >= retained_score(wide, Pattern(2, 4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1.0])
def test_refuses_what_is_no_score(bad: float) -> None:
    scores = torch.ones(2, 8)
    scores[1, 3] = bad
    for find in (search, swap_search):
        with pytest.raises(ValueError, match="finite and not negative"):
            find(scores, Pattern(2, 4), generator=generator())
    with pytest.raises(ValueError, match="does not fit"):
        search(torch.ones(2, 6), Pattern(2, 4), generator=generator())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_blocked_sums_equal_the_definition(seed: int, a: int, b: int, rows: int) -> None:
    left = torch.rand(a, rows, generator=generator(seed), dtype=torch.float64)
    right = torch.rand(b, rows, generator=generator(seed + 1), dtype=torch.float64)
    expected = torch.maximum(left.unsqueeze(1), right).sum(-1)
    for limit in (1, 7, 40, 1 << 19):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("permllm.core.retained.CPU_ELEMENTS", limit)
            torch.testing.assert_close(pairwise_max_sums(left, right), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 7), st.data())
def test_nth_highest_equals_sorting(seed: int, members: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, members))
    channels = torch.rand(12, 3, generator=generator(seed))
    groups = torch.stack([torch.randperm(12, generator=generator(i))[:members] for i in range(4)])
    expected = channels[groups].sort(1, descending=True).values[:, n - 1]
    assert torch.equal(nth_highest(channels, groups, n), expected)


@settings(max_examples=30, deadline=None)
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


@settings(max_examples=30, deadline=None)
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


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.data())
def test_thresholds_equal_the_definition(seed: int, members: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, members - 1))
    grouped = (torch.rand(3, members, 4, generator=generator(seed)) * 5).floor()
    for place in range(members):
        others = grouped[:, [other for other in range(members) if other != place]]
        expected = others.sort(1, descending=True).values[:, n - 1]
        assert torch.equal(thresholds(grouped, n)[:, place], expected)


def several_groups(problem: tuple[Tensor, Pattern, int]) -> bool:
    scores, pattern, _ = problem
    return pattern.groups(scores.shape[1]) > 1


@settings(max_examples=15, deadline=None)
@given(problems().filter(several_groups), st.sampled_from([1, 3]))
def test_walks_make_the_best_swap_that_is_allowed(
    problem: tuple[Tensor, Pattern, int], count: int
) -> None:
    scores, pattern, seed = problem
    channels, rng = scores.T.contiguous(), generator(seed)
    size, m = len(channels), pattern.m
    walks = Walks.of(channels, pattern, torch.randperm(size, generator=rng), count)
    left: list[dict[tuple[int, int], int]] = [{} for _ in range(count)]
    for step in range(4):
        gains, swaps = walks.best_swaps(step)
        until = step + torch.randint(size // 4 + 1, (count,), generator=rng)
        orders = walks.permutations.clone()
        walks.swap(swaps, until.int())
        for walk, order in enumerate(orders):
            before, tried = retained_score(scores, pattern, order), {}
            for p, q in itertools.combinations(range(size), 2):
                goes = (int(order[p]), q // m), (int(order[q]), p // m)
                if p // m != q // m and all(left[walk].get(go, -1) < step for go in goes):
                    swapped = order.clone()
                    swapped[[p, q]] = order[[q, p]]
                    tried[p, q] = retained_score(scores, pattern, swapped) - before
            p, q = sorted(swaps[walk].tolist())
            assert (p, q) in tried
            torch.testing.assert_close(gains[walk], torch.stack(list(tried.values())).max())
            after = retained_score(scores, pattern, walks.permutations[walk])
            torch.testing.assert_close(after, before + gains[walk])
            assert is_permutation(walks.permutations[walk], size)
            for place in (p, q):
                left[walk][int(order[place]), place // m] = int(until[walk])


@settings(max_examples=30, deadline=None)
@given(problems().filter(several_groups), st.integers(0, 30))
def test_tabu_search_never_loses_its_start(
    problem: tuple[Tensor, Pattern, int], steps: int
) -> None:
    scores, pattern, seed = problem
    start = torch.randperm(scores.shape[1], generator=generator(seed))
    first, second = (
        tabu_search(channelwise(scores).T, pattern, start, generator=generator(seed), steps=steps)
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert is_permutation(first, len(start))
    reached, before = (
        retained_score(scores, pattern, permutation) for permutation in (first, start)
    )
    assert reached >= before - 1e-9


def test_default_budget_is_counted_and_shrinks_with_the_group() -> None:
    small, middle, large = (
        plan(outputs, channels, Pattern(2, 4))
        for outputs, channels in ((128, 64), (3072, 576), (4096, 11008))
    )
    assert small.rounds == ROUNDS
    assert small.steps is not None
    assert small.steps > 100
    assert middle == Plan(rounds=11, steps=0)
    assert large == Plan(rounds=0, steps=0)


def test_time_goes_into_steps_where_their_table_fits_and_into_rounds_elsewhere() -> None:
    assert plan(128, 64, Pattern(2, 4), time_limit=1) == Plan(rounds=ROUNDS, steps=None)
    assert plan(128, 64, Pattern(2, 4), rounds=3, time_limit=1) == Plan(rounds=3, steps=None)
    for size in ((4096, 11008), (11008, 4096)):
        assert plan(*size, Pattern(2, 4), time_limit=300) == Plan(rounds=None, steps=0)


def test_walks_fit_the_cache() -> None:
    counts = [walks_at_once(*size, Pattern(2, 4)) for size in ((128, 64), (256, 96), (3072, 576))]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 1
    assert counts[-1] == 1


def test_channelwise_keeps_the_scores_and_their_layout() -> None:
    scores = torch.rand(3, 8)
    laid = channelwise(scores)
    torch.testing.assert_close(laid, scores / scores.max())
    assert laid.T.is_contiguous()
