"""Search for a channel order that keeps a high score under an N:M mask.

RIA ("Plug-and-Play", ICLR 2024), section 4.2: channels are dealt to groups of M by
rank (heuristic allocation), and then one place of every group is freed and filled
again by solving a linear assignment problem. Here the freed place is also drawn at
random, and the search starts again from the best order with noise in the assignments.

Scores are ``[C_out, C_in]``, non-negative and finite. The functions are fastest where
they lie channel by channel in memory, as :func:`channelwise` lays them: moving a
channel then copies a row. An order is a ``LongTensor[C_in]``; the places
``g·M … g·M+M-1`` form group ``g``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from permllm.core.assignment import assign
from permllm.core.patterns import Pattern, nm_mask_by_rows
from permllm.core.permutations import identity

BUDGET = 1_000_000_000
"""Comparisons that a search may spend on rounds where their number is not given."""
ROUNDS = 200
"""The most rounds before a restart where their number is not given."""
_ROUND_OVERHEAD = 500_000
"""What a round costs beside its comparisons, in comparisons."""

NOISE = 0.35
"""Noise of a restart's first rounds, in standard deviations of the assignment's matrix."""
QUIET = 0.2
"""The share of a restart's rounds that come last and without noise."""

_CPU_ELEMENTS = 1 << 19
"""Elements of a temporary on the CPU: about what its cache holds."""
_GPU_ELEMENTS = 1 << 26


def channelwise(scores: Tensor) -> Tensor:
    """The same ``[C_out, C_in]``, in float32 or better, laid out channel by channel.

    The scores are divided by their maximum, so that no sum of them overflows.

    Raises:
        ValueError: the scores are not finite or are negative.
    """
    low, high = torch.aminmax(scores) if scores.numel() else (torch.zeros(()), torch.zeros(()))
    if not (torch.isfinite(high) and low >= 0):
        raise ValueError("scores must be finite and not negative")
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return (wide / high.to(wide.dtype).clamp_min(torch.finfo(wide.dtype).tiny)).T.contiguous().T


def heuristic_order(scores: Tensor, pattern: Pattern) -> Tensor:
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
    scores: Tensor,
    perm: Tensor,
    pattern: Pattern,
    slots: Tensor,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, float]:
    """Free one place of every group and fill the places again in the best way.

    What group ``g`` retains with channel ``c`` in its free place is, in every row, the
    sum of the N-1 highest of the other M-1 scores, plus the higher of their N-th and
    the score of ``c``. Only the last part depends on ``c``, so the assignment problem's
    matrix costs ``C_out · (C_in / M)²`` and no sort.

    Args:
        scores: ``[C_out, C_in]``.
        perm: ``LongTensor[C_in]``, the order so far.
        pattern: N:M.
        slots: ``LongTensor[C_in / M]``, the place of each group, ``0 … M-1``, to free.
        noise: Gaussian noise on the matrix, in standard deviations of what is left of
            it without its row and column means.
        generator: where the noise comes from.

    Returns:
        the new order, and by how much its retained score is higher. Without noise that
        is never below 0.
    """
    channels, places = scores.T, perm.view(-1, pattern.m)
    slot = slots.unsqueeze(1)
    # The other places of a group follow its free one, in a circle.
    others = (slot + torch.arange(1, pattern.m, device=perm.device)) % pattern.m
    free = places.gather(1, slot).squeeze(1)
    hurdle = nth_highest(channels, places.gather(1, others), pattern.n)
    candidates = channels.index_select(0, free)
    matrix = pairwise_max_sums(hurdle, candidates)
    chosen = assign(_disturbed(matrix, noise, generator) if noise else matrix)
    # The matrix is summed in the scores' precision; the decision is made in float64.
    after = torch.maximum(hurdle, candidates.index_select(0, chosen))
    before = torch.maximum(hurdle, candidates)
    gain = (after - before).sum(dtype=torch.float64).item()
    if gain <= 0 and not noise:
        return perm, 0.0
    refined = places.scatter(1, slot, free.index_select(0, chosen).unsqueeze(1))
    return refined.view(-1), gain


def _disturbed(matrix: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    rest = matrix - matrix.mean(0)
    deviation = (rest - rest.mean(1, keepdim=True)).std(correction=0)
    normal = torch.randn(matrix.shape, dtype=matrix.dtype, generator=generator)
    return matrix + noise * deviation * normal.to(matrix.device)


def affordable_rounds(outputs: int, groups: int) -> int:
    """How many rounds the default budget affords: about a quarter of a second of one core.

    Counted in operations and not in seconds, so that the result is always the same.

    Args:
        outputs: C_out of the scores, of all linears of the permutation group.
        groups: ``C_in / M``.
    """
    return BUDGET // (outputs * groups**2 + groups**3 // 2 + _ROUND_OVERHEAD)


def search(
    scores: Tensor,
    pattern: Pattern,
    *,
    generator: torch.Generator,
    refine: bool = True,
    rounds: int | None = None,
    restarts: int | None = None,
    time_limit: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """The best order that assignment rounds find.

    First each place of the groups in turn is freed (:func:`refine_slot`), then a random
    place of every group, ``rounds`` times. A restart goes on from the best order with
    as many rounds, whose noise falls to nothing, and is kept if it ends higher.

    Args:
        scores: ``[C_out, C_in]``, finite and not negative.
        pattern: N:M with M dividing C_in.
        generator: on the CPU; everything random is drawn from it.
        refine: False for the start alone.
        rounds: random-place rounds; None for :func:`affordable_rounds`.
        restarts: None for as many as that budget still affords.
        time_limit: seconds after which no round is begun. Restarts go on until then,
            whatever ``restarts`` says, so the result depends on the machine's speed.
        start: ``LongTensor[C_in]``; None for :func:`heuristic_order`.

    Returns:
        ``LongTensor[C_in]`` on the scores' device. Its retained score is never below
        that of the identity nor of the start.

    Raises:
        ValueError: the scores are not finite or negative, or M does not divide C_in.
    """
    deadline = None if time_limit is None else time.monotonic() + time_limit
    groups = pattern.groups(scores.shape[1])
    scores = channelwise(scores)
    first = heuristic_order(scores, pattern) if start is None else start.to(scores.device)
    best = _better(scores, pattern, identity(scores.shape[1]).to(scores.device), first)
    if not refine or groups < 2:
        return best
    affordable = max(0, affordable_rounds(scores.shape[0], groups) - pattern.m)
    rounds = min(affordable, ROUNDS) if rounds is None else rounds
    if restarts is None:
        restarts = max(0, affordable // rounds - 1) if rounds else 0
    for slot in range(pattern.m):
        if _passed(deadline):
            return best
        best, _ = refine_slot(scores, best, pattern, _slots(slot, groups, scores.device))
    for noises in _phases(rounds, restarts if deadline is None else None):
        current = best
        for noise in noises:
            if _passed(deadline):
                return _better(scores, pattern, best, current)
            slots = torch.randint(pattern.m, (groups,), generator=generator).to(scores.device)
            current, _ = refine_slot(scores, current, pattern, slots, noise, generator)
        # Rounds without noise never lose.
        best = _better(scores, pattern, best, current) if any(noises) else current
    return best


def nth_highest(channels: Tensor, members: Tensor, n: int) -> Tensor:
    """The N-th highest score of the members of each group, in every row.

    Args:
        channels: ``[C_in, C_out]``.
        members: ``LongTensor[G, K]``, the channels of each group, ``K >= n``.

    Returns:
        ``[G, C_out]``.
    """
    top: list[Tensor] = []
    for member in members.unbind(1):
        score = channels.index_select(0, member)
        for rank, higher in enumerate(top):
            top[rank], score = torch.maximum(higher, score), torch.minimum(higher, score)
        if len(top) < n:
            top.append(score)
    return top[-1]


def _phases(rounds: int, restarts: int | None) -> Iterator[list[float]]:
    """The noise of every round, first without any and then of each restart."""
    if rounds == 0:
        return
    yield [0.0] * rounds
    loud = rounds * (1 - QUIET)
    falling = [NOISE * max(0.0, 1 - done / loud) for done in range(rounds)]
    for _ in itertools.count() if restarts is None else range(restarts):
        yield falling


def _better(scores: Tensor, pattern: Pattern, known: Tensor, other: Tensor) -> Tensor:
    """The order that retains more, ``known`` where both retain the same."""
    if retained_by_rows(scores.T, pattern, other) > retained_by_rows(scores.T, pattern, known):
        return other
    return known


def retained_by_rows(channels: Tensor, pattern: Pattern, perm: Tensor) -> float:
    """The retained score of scores that lie channel by channel, ``[C_in, C_out]``."""
    placed = channels.index_select(0, perm)
    return placed.mul(nm_mask_by_rows(placed, pattern)).sum(dtype=torch.float64).item()


def _slots(slot: int, groups: int, device: torch.device) -> Tensor:
    return torch.full((groups,), slot, device=device)


def _passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def pairwise_max_sums(left: Tensor, right: Tensor) -> Tensor:
    """``result[a, b] = Σ_r max(left[a, r], right[b, r])`` with bounded temporaries.

    Args:
        left: ``[A, R]``.
        right: ``[B, R]``.

    Returns:
        ``[A, B]``.
    """
    limit = _CPU_ELEMENTS if left.device.type == "cpu" else _GPU_ELEMENTS
    columns = max(1, min(len(right), limit // max(1, left.shape[1])))
    rows = max(1, min(len(left), limit // max(1, columns * left.shape[1])))
    sums = left.new_empty(len(left), len(right))
    buffer = left.new_empty(rows, columns, left.shape[1])
    for b in range(0, len(right), columns):
        some = right[b : b + columns]
        for a in range(0, len(left), rows):
            part = left[a : a + rows].unsqueeze(1)
            higher = torch.maximum(part, some, out=buffer[: len(part), : len(some)])
            torch.sum(higher, -1, out=sums[a : a + rows, b : b + columns])
    return sums
