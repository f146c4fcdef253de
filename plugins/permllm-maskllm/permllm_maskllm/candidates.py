"""The candidate masks of a group (MaskLLM, equations 1 and 2), told by rank.

A group's M entries are put in order of their scores, highest first, and a candidate says
which *ranks* it keeps. So one table serves all groups, and its first row, which keeps the
ranks 0 to N-1, is every group's one-shot mask: the paper's prior.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from permllm.core.patterns import Pattern
from permllm.core.permutations import invert


def candidate_masks(pattern: Pattern, limit: int) -> Tensor:
    """The masks that keep N of M ranks, the likeliest first.

    A mask is likelier the higher the ranks that it keeps: by the sum of their numbers,
    then by the numbers themselves. The one-shot mask comes first.

    Args:
        pattern: N:M.
        limit: at most so many; the others are never listed, so M may be large.

    Returns:
        float32 ``[C, M]`` of zeros and ones, C being the smaller of ``limit`` and the
        binomial coefficient of M and N.
    """
    first = tuple(range(pattern.n))
    waiting, seen = [(sum(first), first)], {first}
    rows: list[tuple[int, ...]] = []
    while waiting and len(rows) < limit:
        total, kept = heapq.heappop(waiting)
        rows.append(kept)
        for changed in range(pattern.n):
            after = (*kept[:changed], kept[changed] + 1, *kept[changed + 1 :])
            fits = after[changed] < (*after, pattern.m)[changed + 1]
            if fits and after not in seen:
                seen.add(after)
                heapq.heappush(waiting, (total + 1, after))
    table = torch.zeros(len(rows), pattern.m)
    return table.scatter_(1, torch.tensor(rows), 1.0)


def similarity(table: Tensor, pattern: Pattern) -> Tensor:
    """How much each candidate agrees with the one-shot mask (equation 9), ``[C]``.

    The number of entries that both keep, less its mean over all masks, ``N²/M``; the
    paper writes N/2, which is the same where half of the weights are kept.

    Args:
        table: ``[C, M]``, from :func:`candidate_masks`.
        pattern: N:M.
    """
    return table[:, : pattern.n].sum(1) - pattern.n**2 / pattern.m


def ranked_places(scores: Tensor, permutation: Tensor, pattern: Pattern) -> Tensor:
    """Where each entry stands once channels are permuted and groups are sorted by score.

    Args:
        scores: ``[C_out, C_in]``, in original channel order.
        permutation: ``LongTensor[C_in]``, the order in which groups are cut.
        pattern: N:M.

    Returns:
        ``[C_out, C_in]`` in original channel order, in the smallest integer type that
        holds C_in: the entry of rank ``r`` in group ``g`` of its row has ``g · M + r``.
        Of equal scores the earlier in permuted order has the higher rank.
    """
    groups = pattern.groups(scores.shape[1])
    grouped = scores.index_select(1, permutation).unflatten(1, (groups, pattern.m))
    order = grouped.sort(dim=2, descending=True, stable=True).indices
    ranks = invert(order) + pattern.m * torch.arange(groups, device=scores.device)[:, None]
    small = torch.int16 if scores.shape[1] <= torch.iinfo(torch.int16).max else torch.int32
    return ranks.flatten(1).to(small).index_select(1, invert(permutation))
