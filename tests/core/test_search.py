"""The searches never lose retained score, and each round makes the best of its places."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.core import search as searching
from permllm.core.patterns import Pattern, retained_score
from permllm.core.permutations import identity, is_permutation
from permllm.core.retained import better, channelwise
from permllm.core.search import (
    _ROUND_OVERHEAD,
    _SPEED,
    _STEP_OVERHEAD,
    BUDGET,
    ROUNDS,
    TABLE_ELEMENTS,
    Plan,
    heuristic_permutation,
    plan,
    refine_slot,
    search,
)
from permllm.core.swaps import swap_search
from permllm.core.tabu import step_comparisons, tabu_search


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


@settings(max_examples=40)
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


@settings(max_examples=60)
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


@settings(max_examples=30)
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


@settings(max_examples=40)
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


def test_the_heuristic_ranks_equal_sums_in_their_order_and_sums_in_float64() -> None:
    assert heuristic_permutation(torch.ones(3, 8), Pattern(2, 4)).tolist() == [
        0,
        3,
        4,
        7,
        1,
        2,
        5,
        6,
    ]
    # In float32 both sums were 2 ** 25.
    scores = torch.tensor([[2.0**25, 2.0**25, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert heuristic_permutation(scores, Pattern(1, 2)).tolist() == [1, 3, 0, 2]
    with pytest.raises(ValueError, match="does not fit 6 channels"):
        heuristic_permutation(torch.ones(2, 6), Pattern(2, 4))


def test_a_round_works_on_the_scores_device() -> None:
    scores, order = torch.rand(5, 16, generator=generator()), identity(16)
    slots = torch.tensor([0, 3, 1, 2])
    expected, gain = refine_slot(scores, order, Pattern(2, 4), slots)
    with torch.device("meta"):
        refined, same = refine_slot(scores, order, Pattern(2, 4), slots)
    assert gain == same > 0
    assert torch.equal(refined, expected)
    again, nothing = refine_slot(torch.ones(5, 16), order, Pattern(2, 4), slots)
    assert again is order
    assert nothing == 0.0


def test_the_gain_of_a_round_is_summed_in_float64() -> None:
    scores = torch.rand(4000, 16, generator=generator())
    order, slots = identity(16), torch.tensor([0, 3, 1, 2])
    refined, gain = refine_slot(scores, order, Pattern(2, 4), slots)
    before, after = (retained_score(scores.double(), Pattern(2, 4), o) for o in (order, refined))
    # Random numbers are multiples of 2 ** -24, so that their differences are exact.
    assert gain == pytest.approx(float(after - before), rel=0, abs=1e-9)


def first_rounds(scores: Tensor, pattern: Pattern, order: Tensor, rounds: int, seed: int) -> Tensor:
    """Each place of the groups freed in turn, and then random ones, written out."""
    groups, rng = pattern.groups(scores.shape[1]), generator(seed)
    every = [torch.full((groups,), slot) for slot in range(pattern.m)]
    every += [torch.randint(pattern.m, (groups,), generator=rng) for _ in range(rounds)]
    for slots in every:
        order, _ = refine_slot(scores, order, pattern, slots)
    return order


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 9])
@pytest.mark.parametrize("rounds", [0, 1, 6])
def test_a_search_makes_its_rounds_and_then_its_steps(
    started: bool, rounds: int, steps: int
) -> None:
    pattern = Pattern(2, 4)
    scores = channelwise(torch.rand(6, 24, generator=generator(8)))
    start = torch.randperm(24, generator=generator(9)) if started else None
    first = heuristic_permutation(scores, pattern) if start is None else start
    first = better(scores.T, pattern, identity(24), first)
    expected = first_rounds(scores, pattern, first, rounds, seed=4)
    rng = generator(4)
    for _ in range(rounds):
        torch.randint(4, (6,), generator=rng)
    expected = tabu_search(scores.T, pattern, expected, generator=rng, steps=steps)
    order = search(scores, pattern, generator=generator(4), rounds=rounds, steps=steps, start=start)
    assert torch.equal(order, expected)
    unrefined = search(scores, pattern, generator=generator(), refine=False, start=start)
    assert torch.equal(unrefined, first)


def test_by_default_a_search_is_as_planned() -> None:
    scores, pattern = torch.rand(16, 24, generator=generator()), Pattern(2, 4)
    todo = plan(16, 24, pattern)
    planned = search(scores, pattern, generator=generator(), rounds=todo.rounds, steps=50)
    assert torch.equal(search(scores, pattern, generator=generator(), steps=50), planned)


def test_a_single_group_needs_no_search() -> None:
    scores, rng = torch.rand(6, 4, generator=generator()), generator()
    before = rng.get_state()
    order = search(scores, Pattern(2, 4), generator=rng)
    assert is_permutation(order, 4)
    assert torch.equal(rng.get_state(), before)
    two = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 1.0, 1.0, 1.0]])
    assert retained_score(two, Pattern(2, 4), search(two, Pattern(2, 4), generator=rng)) == 30


@pytest.mark.parametrize(("limit", "made"), [(0.0, 0), (2.5, 2), (7.0, 6)])
def test_no_round_is_begun_after_the_limit(
    monkeypatch: pytest.MonkeyPatch, limit: float, made: int
) -> None:
    """With a clock that goes on by a second whenever somebody looks."""
    clock, rounds = itertools.count(100), []

    def refine(*args: object) -> tuple[Tensor, float]:
        rounds.append(args)
        return refine_slot(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("permllm.core.durations.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(searching, "refine_slot", refine)
    # No table of swaps fits, so that rounds go on until the limit.
    monkeypatch.setattr(searching, "TABLE_ELEMENTS", 1)
    scores = torch.rand(6, 24, generator=generator())
    order = search(scores, Pattern(2, 4), generator=generator(), time_limit=limit)
    assert len(rounds) == made
    assert is_permutation(order, 24)


def test_the_limit_of_a_search_is_that_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def steps(scores: Tensor, pattern: Pattern, order: Tensor, **options: object) -> Tensor:
        asked.append(options)
        return order

    monkeypatch.setattr("permllm.core.durations.time.monotonic", lambda: 100.0)
    monkeypatch.setattr(searching, "tabu_search", steps)
    rng = generator()
    search(torch.rand(6, 24), Pattern(2, 4), generator=rng, rounds=1, time_limit=5.0)
    search(torch.rand(6, 24), Pattern(2, 4), generator=rng, rounds=1, steps=3)
    limited, unlimited = asked
    assert (limited["generator"], limited["steps"]) == (rng, None)
    assert (unlimited["generator"], unlimited["steps"]) == (rng, 3)
    for now, ended in ((104.0, False), (105.0, True)):
        monkeypatch.setattr("permllm.core.durations.time.monotonic", lambda now=now: now)
        assert limited["stop"]() is ended
        assert unlimited["stop"]() is False


@pytest.mark.parametrize(("rounds", "steps"), [(10**6, 0), (0, 10**6)])
@pytest.mark.parametrize("limit", [None, 1e6])
def test_a_search_ends_with_what_it_has_when_it_is_told_to(
    rounds: int, steps: int, limit: float | None
) -> None:
    looks = iter([False] * 12)
    scores = torch.rand(6, 24, generator=generator()) ** 4
    order = search(
        scores,
        Pattern(2, 4),
        generator=generator(),
        rounds=rounds,
        steps=steps,
        time_limit=limit,
        stop=lambda: next(looks, True),
    )
    assert is_permutation(order, 24)
    before = retained_score(scores, Pattern(2, 4), identity(24))
    assert retained_score(scores, Pattern(2, 4), order) > before


def costs(outputs: int, channels: int, pattern: Pattern) -> tuple[int, int, int]:
    """Comparisons of the table of swaps, of a round and of a step."""
    groups = channels // pattern.m
    return (
        outputs * channels**2,
        outputs * groups**2 + groups**3 // 2 + _ROUND_OVERHEAD,
        step_comparisons(outputs, channels, pattern) + _STEP_OVERHEAD,
    )


@settings(max_examples=200)
@given(
    st.sampled_from([64, 250, 1000, 3072, 20_000]),
    st.sampled_from([32, 64, 192, 576, 1024, 2048, 11_008]),
    st.sampled_from([Pattern(2, 4), Pattern(4, 8), Pattern(8, 32)]),
    st.sampled_from([None, 0, 7, 10_000]),
)
def test_a_plan_spends_the_budget_and_no_more(
    outputs: int, channels: int, pattern: Pattern, fixed: int | None
) -> None:
    table, each_round, each_step = costs(outputs, channels, pattern)
    todo = plan(outputs, channels, pattern, rounds=fixed)
    assert todo.rounds is not None
    assert todo.steps is not None
    fits = 4 * table <= BUDGET and channels**2 <= TABLE_ELEMENTS
    if fixed is None:
        spent = (pattern.m + todo.rounds) * each_round
        assert todo.rounds == 0 or spent <= BUDGET
        assert spent + each_round > BUDGET or (fits and todo.rounds == ROUNDS)
        assert not fits or todo.rounds <= ROUNDS
    else:
        assert todo.rounds == fixed
    spent = (pattern.m + todo.rounds) * each_round + table + todo.steps * each_step
    assert todo.steps == 0 or (fits and spent <= BUDGET)
    assert not fits or spent + each_step > BUDGET
    assert plan(outputs, channels, pattern, rounds=fixed, steps=5) == Plan(todo.rounds, 5)


def test_tables_are_planned_up_to_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "_ROUND_OVERHEAD", 0)
    monkeypatch.setattr(searching, "_STEP_OVERHEAD", 0)
    table = 64 * 256**2
    for budget, fits in ((4 * table, True), (4 * table - 1, False)):
        monkeypatch.setattr(searching, "BUDGET", budget)
        steps = plan(64, 256, Pattern(2, 4), rounds=0).steps
        assert steps is not None
        assert (steps > 0) == fits
    monkeypatch.setattr(searching, "BUDGET", 4 * table)
    for elements, fits in ((256**2, True), (256**2 - 1, False)):
        monkeypatch.setattr(searching, "TABLE_ELEMENTS", elements)
        steps = plan(64, 256, Pattern(2, 4), rounds=0).steps
        assert steps is not None
        assert (steps > 0) == fits


@pytest.mark.parametrize("extra", [0, 1])
def test_a_time_is_planned_with_so_many_comparisons_a_second(
    monkeypatch: pytest.MonkeyPatch, extra: int
) -> None:
    """Steps are begun where all rounds fit before the limit, and else rounds alone."""
    _, each_round, _ = costs(64, 8, Pattern(2, 4))
    wanted = (4 + ROUNDS) * each_round
    monkeypatch.setattr(searching, "_SPEED", wanted - extra)
    expected = Plan(ROUNDS, None) if not extra else Plan(None, 0)
    assert plan(64, 8, Pattern(2, 4), time_limit=1.0) == expected
    monkeypatch.setattr(searching, "_SPEED", (wanted - extra) / 2)
    assert plan(64, 8, Pattern(2, 4), time_limit=2.0) == expected
    assert _SPEED > BUDGET


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
