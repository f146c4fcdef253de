"""What the searches for a channel order compute of scores that lie channel by channel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from permllm.core.patterns import Pattern, nm_mask_by_rows
from permllm.core.precision import upcast

CPU_ELEMENTS = 1 << 19
"""Elements of a temporary on the CPU: about what its cache holds."""
_GPU_ELEMENTS = 1 << 26


def channelwise(scores: Tensor) -> Tensor:
    """The same ``[C_out, C_in]``, in float32 or better, whose ``.T`` is contiguous.

    Searches read that, ``[C_in, C_out]``, one channel after the other.
    The scores are divided by their maximum, so that no sum of them overflows.

    Raises:
        ValueError: the scores are not finite or are negative.
    """
    low, high = torch.aminmax(scores) if scores.numel() else (torch.zeros(()), torch.zeros(()))
    if not (torch.isfinite(high) and low >= 0):
        raise ValueError("scores must be finite and not negative")
    exact = upcast(scores)
    smallest = torch.finfo(exact.dtype).tiny
    return (exact / high.to(exact.dtype).clamp_min(smallest)).T.contiguous().T


def retained_by_rows(channels: Tensor, pattern: Pattern, permutation: Tensor) -> float:
    """The retained score of scores that lie channel by channel, ``[C_in, C_out]``.

    They are those of :func:`channelwise`, transposed.
    """
    placed = channels.index_select(0, permutation)
    return placed.mul(nm_mask_by_rows(placed, pattern)).sum(dtype=torch.float64).item()


def better(channels: Tensor, pattern: Pattern, known: Tensor, other: Tensor) -> Tensor:
    """The order that retains more of ``[C_in, C_out]``, ``known`` where both retain the same."""
    higher = retained_by_rows(channels, pattern, other) > retained_by_rows(channels, pattern, known)
    return other if higher else known


def nth_highest(channels: Tensor, members: Tensor, n: int) -> Tensor:
    """The N-th highest score of the members of each group, in every row.

    Args:
        channels: ``[C_in, C_out]``.
        members: ``LongTensor[G, K]``, the channels of each group, ``K >= n``.

    Returns:
        ``[G, C_out]``.
    """
    return _highest((channels.index_select(0, member) for member in members.unbind(1)), n)[-1]


def thresholds(grouped: Tensor, n: int) -> Tensor:
    """The N-th highest score of the others of its group, for each member, in every row.

    It is the group's N-th highest score, or the one below where the member is itself
    among the N highest.

    Args:
        grouped: ``[..., M, C_out]``, the scores of each group's members, ``M > n``.

    Returns:
        ``[..., M, C_out]``.
    """
    *_, nth, below = (rank.unsqueeze(-2) for rank in _highest(grouped.unbind(-2), n + 1))
    return torch.where(grouped >= nth, below, nth)


def _highest(entries: Iterable[Tensor], count: int) -> list[Tensor]:
    """The highest ``count`` values of the entries, elementwise, the highest first."""
    top: list[Tensor] = []
    for entry in entries:
        for rank, higher in enumerate(top):
            top[rank], entry = torch.maximum(higher, entry), torch.minimum(higher, entry)
        if len(top) < count:
            top.append(entry)
    return top


def pairwise_max_sums(left: Tensor, right: Tensor) -> Tensor:
    """``result[a, b] = Σ_r max(left[a, r], right[b, r])`` with bounded temporaries.

    Args:
        left: ``[A, R]``.
        right: ``[B, R]``.

    Returns:
        ``[A, B]``.
    """
    limit = CPU_ELEMENTS if left.device.type == "cpu" else _GPU_ELEMENTS
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
