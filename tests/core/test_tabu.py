"""Tabu walks make the best swap that is allowed, and never lose their start."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.patterns import Pattern, retained_score
from permllm.core.permutations import identity, is_permutation
from permllm.core.retained import CPU_ELEMENTS, channelwise
from permllm.core.tabu import (
    TENURE,
    WALKS,
    Walks,
    _worth,
    step_comparisons,
    tabu_search,
    walks_at_once,
)


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


def several_groups(problem: tuple[Tensor, Pattern, int]) -> bool:
    scores, pattern, _ = problem
    return pattern.groups(scores.shape[1]) > 1


@settings(max_examples=15)
@given(problems().filter(several_groups), st.sampled_from([1, 2, 3]))
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
            before, tried = retained_score(scores, pattern, order), []
            for p, q in itertools.combinations(range(size), 2):
                goes = (int(order[p]), q // m), (int(order[q]), p // m)
                if p // m != q // m and all(left[walk].get(go, -1) < step for go in goes):
                    tried.append((p, q))
            p, q = sorted(swaps[walk].tolist())
            assert (p, q) in tried
            # All at once: scores in the order of every swap, beneath each other.
            orders_of = order.repeat(len(tried), 1)
            pairs = torch.tensor(tried)
            orders_of.scatter_(1, pairs, order[pairs.flip(1)])
            kept = scores[:, orders_of].unflatten(-1, (-1, m)).topk(pattern.n).values
            best = kept.sum((0, 2, 3)).max()
            torch.testing.assert_close(gains[walk], best - before)
            after = retained_score(scores, pattern, walks.permutations[walk])
            torch.testing.assert_close(after, before + gains[walk])
            assert is_permutation(walks.permutations[walk], size)
            for place in (p, q):
                left[walk][int(order[place]), place // m] = int(until[walk])


@settings(max_examples=30)
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


def test_walks_fit_the_cache() -> None:
    counts = [walks_at_once(*size, Pattern(2, 4)) for size in ((128, 64), (256, 96), (3072, 576))]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 1
    assert counts[-1] == 1


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8)])
def test_walks_at_once_compare_no_more_than_the_cache_holds(pattern: Pattern) -> None:
    """In a step, every walk compares two groups of M places with all channels."""
    for outputs, channels in itertools.product((1, 64, 100, 128, 4096), (8, 64, 96, 576)):
        one, count = 2 * pattern.m * outputs * channels, walks_at_once(outputs, channels, pattern)
        assert isinstance(count, int)
        assert 1 <= count <= WALKS
        assert count == 1 or count * one <= CPU_ELEMENTS
        assert count == WALKS or (count + 1) * one > CPU_ELEMENTS
        assert step_comparisons(outputs, channels, pattern) == count * one


Visits = list[tuple[Tensor, Tensor]]


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> Visits:
    """Every step's bars and the orders after it."""
    seen: Visits = []
    swap = Walks.swap

    def record(walks: Walks, swaps: Tensor, until: Tensor) -> None:
        swap(walks, swaps, until)
        seen.append((until.clone(), walks.permutations.clone()))

    monkeypatch.setattr(Walks, "swap", record)
    return seen


@pytest.mark.parametrize("channels", [8, 16, 24, 80])
def test_bars_last_from_a_third_of_the_tenure_to_all_of_it(visits: Visits, channels: int) -> None:
    """And the tenure is at most a quarter of the channels."""
    scores = torch.rand(channels, 3, generator=generator())
    order = identity(channels)
    tabu_search(scores, Pattern(2, 4), order, generator=generator(), steps=60)
    longest = min(TENURE, channels // 4)
    tenures = torch.stack([until - step for step, (until, _) in enumerate(visits)])
    assert len(visits) == 60
    assert tenures.dtype == torch.int32
    assert tenures.unique().tolist() == list(range(longest // 3, longest + 1))
    assert len(tenures[0].unique()) > 1  # each walk has its own


@pytest.mark.parametrize("seed", range(4))
def test_the_best_order_on_the_way_is_kept(visits: Visits, seed: int) -> None:
    scores = torch.rand(6, 32, generator=generator(seed), dtype=torch.float64)
    start = torch.randperm(32, generator=generator(seed))
    for steps in (1, 7, 40):
        visits.clear()
        order = tabu_search(
            scores.T.contiguous(), Pattern(2, 4), start, generator=generator(), steps=steps
        )
        passed = [start, *(each for _, orders in visits for each in orders)]
        best = max(retained_score(scores, Pattern(2, 4), each) for each in passed)
        torch.testing.assert_close(retained_score(scores, Pattern(2, 4), order), best)


def test_where_nothing_is_better_the_start_is_kept(visits: Visits) -> None:
    start = torch.randperm(16, generator=generator())
    order = tabu_search(torch.ones(16, 3), Pattern(2, 4), start, generator=generator(), steps=5)
    assert order is start
    assert len(visits) == 5


@pytest.mark.parametrize(("steps", "made"), [(3, 3), (50, 10), (None, 10)])
def test_steps_end_with_their_number_or_when_they_are_told_to(
    visits: Visits, steps: int | None, made: int
) -> None:
    looks = iter([False] * 10)
    tabu_search(
        torch.rand(16, 3, generator=generator()),
        Pattern(2, 4),
        identity(16),
        generator=generator(),
        steps=steps,
        stop=lambda: next(looks, True),
    )
    assert len(visits) == made


def test_walks_are_made_on_the_scores_device() -> None:
    scores, order = torch.rand(16, 3, generator=generator()), identity(16)
    results = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            walks = Walks.of(scores, Pattern(2, 4), order, 3)
            gains, swaps = walks.best_swaps(0)
            walks.swap(swaps, torch.tensor([2, 3, 4], dtype=torch.int32, device="cpu"))
            results.append((gains, walks.permutations, walks.worth, walks.until))
    for plain, other in zip(*results, strict=True):
        assert torch.equal(plain, other)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_the_worth_of_a_channel_is_what_exceeds_each_threshold(
    walks: int, places: int, channels: int, outputs: int
) -> None:
    threshold, scores = torch.rand(walks, places, outputs), torch.rand(walks, channels, outputs)
    worth = _worth(threshold, scores)
    for walk, place, channel in itertools.product(*map(range, (walks, places, channels))):
        expected = torch.maximum(threshold[walk, place], scores[walk, channel]).sum()
        torch.testing.assert_close(worth[walk, place, channel], expected)
