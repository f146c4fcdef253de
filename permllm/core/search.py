"""Search for a channel order that keeps a high score under an N:M mask.

RIA ("Plug-and-Play", ICLR 2024), section 4.2: channels are dealt to groups of M by
rank (heuristic allocation), and then one place of every group is freed and filled
again by solving a linear assignment problem. Here the freed place is also drawn at
random, and where a table of all swaps is affordable, a tabu search among them
(:mod:`permllm.core.tabu`) goes on from what the assignments reach.

Scores are ``[C_out, C_in]``, non-negative and finite. The functions are fastest where
they lie channel by channel in memory, as :func:`channelwise` lays them: moving a
channel then copies a row. An order is a ``LongTensor[C_in]``; the places
``g·M … g·M+M-1`` form group ``g``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import attrs
import torch
from torch import Tensor

from permllm.core.assignment import assign
from permllm.core.durations import never, over
from permllm.core.patterns import Pattern
from permllm.core.permutations import identity
from permllm.core.retained import better, channelwise, nth_highest, pairwise_max_sums
from permllm.core.tabu import step_comparisons, tabu_search

BUDGET = 1_000_000_000
"""Comparisons that a search may spend where nothing else bounds it."""
ROUNDS = 200
"""The most random-place rounds before tabu steps where their number is not given."""
TABLE_ELEMENTS = 1 << 26
"""Elements of the largest table of swaps."""

_SPEED = 4_000_000_000
"""Comparisons per second, about: what a time limit is planned with."""
_ROUND_OVERHEAD = 500_000
"""What a round costs beside its comparisons, in comparisons."""
_STEP_OVERHEAD = 1_500_000
"""What a tabu step costs beside its comparisons, in comparisons."""


def heuristic_permutation(scores: Tensor, pattern: Pattern) -> Tensor:
    """Heuristic channel allocation: each group gets one channel of each rank.

    The channels, sorted by summed score, are cut into M runs; run ``i`` is dealt to
    place ``i`` of every group, every second run in reverse.

    Args:
        scores: ``[C_out, C_in]``.
        pattern: N:M with M dividing C_in.

    Returns:
        ``LongTensor[C_in]`` on the scores' device.
    """
    pattern.groups(scores.shape[1])
    ranked = scores.sum(0, dtype=torch.float64).argsort(descending=True, stable=True)
    runs = ranked.view(pattern.m, -1).clone()
    runs[1::2] = runs[1::2].flip(1)
    return runs.T.reshape(-1)


def refine_slot(
    scores: Tensor, permutation: Tensor, pattern: Pattern, slots: Tensor
) -> tuple[Tensor, float]:
    """Free one place of every group and fill the places again in the best way.

    What group ``g`` retains with channel ``c`` in its free place is, in every row, the
    sum of the N-1 highest of the other M-1 scores, plus the higher of their N-th and
    the score of ``c``. Only the last part depends on ``c``, so the assignment problem's
    matrix costs ``C_out · (C_in / M)²`` and no sort.

    Args:
        scores: ``[C_out, C_in]``.
        permutation: ``LongTensor[C_in]``, the order so far.
        pattern: N:M.
        slots: ``LongTensor[C_in / M]``, the place of each group, ``0 … M-1``, to free.

    Returns:
        the new order, and by how much its retained score is higher, never below 0.
    """
    channels, places = scores.T, permutation.view(-1, pattern.m)
    slot = slots.unsqueeze(1)
    # The other places of a group follow its free one, in a circle.
    others = (slot + torch.arange(1, pattern.m, device=permutation.device)) % pattern.m
    free = places.gather(1, slot).squeeze(1)
    threshold = nth_highest(channels, places.gather(1, others), pattern.n)
    candidates = channels.index_select(0, free)
    chosen = assign(pairwise_max_sums(threshold, candidates))
    # The matrix is summed in the scores' precision; the decision is made in float64.
    after = torch.maximum(threshold, candidates.index_select(0, chosen))
    before = torch.maximum(threshold, candidates)
    gain = (after - before).sum(dtype=torch.float64).item()
    if gain <= 0:
        return permutation, 0.0
    refined = places.scatter(1, slot, free.index_select(0, chosen).unsqueeze(1))
    return refined.view(-1), gain


@attrs.frozen
class Plan:
    """What a search does after it has freed each place of the groups in turn.

    Attributes:
        rounds: random-place rounds; None for no end but the time limit.
        steps: tabu steps of each walk after them; None likewise.
    """

    rounds: int | None
    steps: int | None


def plan(
    outputs: int,
    channels: int,
    pattern: Pattern,
    *,
    rounds: int | None = None,
    steps: int | None = None,
    time_limit: float | None = None,
) -> Plan:
    """The rounds and steps that the default budget or the time limit affords.

    The default budget is about a quarter of a second of one core, but counted in
    comparisons and not in seconds, so that the result is always the same. Tabu steps
    are planned where their table takes a quarter of the budget at most.

    Args:
        outputs: C_out of the scores, of all linears of the permutation group.
        channels: C_in.
        pattern: N:M with M dividing C_in.
        rounds: their number, if it is fixed.
        steps: their number, if it is fixed; without a time limit.
        time_limit: in seconds.
    """
    groups = pattern.groups(channels)
    budget = BUDGET if time_limit is None else int(time_limit * _SPEED)
    table = outputs * channels**2
    each_round = outputs * groups**2 + groups**3 // 2 + _ROUND_OVERHEAD
    affordable = max(0, budget // each_round - pattern.m)
    swaps_fit = 4 * table <= budget and channels**2 <= TABLE_ELEMENTS
    if time_limit is not None and not (swaps_fit and affordable >= ROUNDS):
        # Building a table is not interrupted, so it must not begin near the limit.
        return Plan(None, 0)
    if rounds is None:
        rounds = min(affordable, ROUNDS) if swaps_fit else affordable
    if time_limit is not None:
        return Plan(rounds, None)
    if steps is None:
        left = budget - (pattern.m + rounds) * each_round - table
        each_step = step_comparisons(outputs, channels, pattern) + _STEP_OVERHEAD
        steps = max(0, left // each_step) if swaps_fit else 0
    return Plan(rounds, steps)


def search(
    scores: Tensor,
    pattern: Pattern,
    *,
    generator: torch.Generator,
    refine: bool = True,
    rounds: int | None = None,
    steps: int | None = None,
    time_limit: float | None = None,
    start: Tensor | None = None,
    stop: Callable[[], bool] = never,
) -> Tensor:
    """The best order that assignment rounds and then tabu steps find.

    First each place of the groups in turn is freed (:func:`refine_slot`), then a random
    place of every group, ``rounds`` times. From there tabu walks go ``steps`` steps
    (:func:`permllm.core.tabu.tabu_search`).

    Args:
        scores: ``[C_out, C_in]``, finite and not negative.
        pattern: N:M with M dividing C_in.
        generator: on the CPU; everything random is drawn from it.
        refine: False for the start alone.
        rounds: random-place rounds; None for what :func:`plan` affords.
        steps: None for what that budget still affords.
        time_limit: seconds after which no round or step is begun. They go on until
            then, whatever ``steps`` says, so the result depends on the machine's speed.
            Where no table of swaps fits, rounds do so, whatever ``rounds`` says.
        start: ``LongTensor[C_in]``; None for :func:`heuristic_permutation`.
        stop: says whether to end at once with what is found, asked before each round or step.

    Returns:
        ``LongTensor[C_in]`` on the scores' device. Its retained score is never below
        that of the identity nor of the start.

    Raises:
        ValueError: the scores are not finite or negative, or M does not divide C_in.
    """
    ended = over(time_limit, stop)
    outputs, size = scores.shape
    groups = pattern.groups(size)
    scores = channelwise(scores)
    first = heuristic_permutation(scores, pattern) if start is None else start.to(scores.device)
    best = better(scores.T, pattern, identity(size).to(scores.device), first)
    if not refine or groups < 2:
        return best
    todo = plan(outputs, size, pattern, rounds=rounds, steps=steps, time_limit=time_limit)
    for slots in _slots(groups, pattern, todo.rounds, generator):
        if ended():
            return best
        best, _ = refine_slot(scores, best, pattern, slots.to(scores.device))
    if todo.steps == 0:
        return best
    return tabu_search(scores.T, pattern, best, generator=generator, steps=todo.steps, stop=ended)


def _slots(
    groups: int, pattern: Pattern, rounds: int | None, generator: torch.Generator
) -> Iterator[Tensor]:
    """The place to free of every group, round by round: each in turn, then random ones."""
    for slot in range(pattern.m):
        yield torch.full((groups,), slot)
    for _ in itertools.count() if rounds is None else range(rounds):
        yield torch.randint(pattern.m, (groups,), generator=generator)
