"""Rounding what pruning kept to a grid of eight or four bits; what it cut stays zero.

Scales are chosen part by part of a row: of some that cut off the largest weights more or less,
the one with the least squared error, in which every channel counts by how large its inputs
are. Rounded to the nearest code, a weight is off by half a step at most, unless it was cut off.
Rounded one column after another (GPTQ, arXiv 2210.17323), later columns make up for the error
of earlier ones, as they do for what :class:`~permllm.pruners.sparsegpt.SparseGpt` cuts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from permllm.core.codes import Grid
from permllm.core.compensation import inverse_factor, settle_block

SHRINKS = tuple(1 - step / 20 for step in range(11))
"""Scales that are tried, in units of the one that cuts off nothing."""

BLOCK = 128
"""Columns between two updates of all that come after them."""

DAMPENING = 0.01
"""``λ`` of the Hessian, relative to the mean of its diagonal."""


def round_to_nearest(weight: Tensor, importance: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Round every entry by itself.

    Args:
        weight: ``[C_out, C_in]``, its columns in stored order.
        importance: ``[C_in]``, what a channel's squared error counts, such as the diagonal
            of its Gram matrix.
        grid: what to round to.

    Returns:
        the rounded weight, in float32 or better, and scales ``bfloat16[C_out, G]``.
    """
    columns = _columns(weight)
    scales = []
    span = grid.channels(len(columns))
    parts = zip(columns.split(span), importance.to(columns).split(span), strict=True)
    for part, counts in parts:
        scales.append(best_scale(part, counts, grid.top))
        part.copy_(nearest(part, scales[-1], grid.top))
    return columns.T.contiguous(), torch.stack(scales, 1)


def round_compensating(weight: Tensor, gram: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Round column by column, later ones making up for the error; zeros stay.

    Args:
        weight: ``[C_out, C_in]``, its columns in stored order.
        gram: ``[C_in, C_in]`` of its inputs, in the same order.
        grid: what to round to.

    Returns:
        as :func:`round_to_nearest`.

    Raises:
        RunFailed: the Gram matrix is not finite, or has no Cholesky factor.
    """
    columns = _columns(weight)
    gram = gram.to(columns)
    kept, importance = columns != 0, gram.diagonal()
    factor = inverse_factor(gram, DAMPENING, "rounding")
    span = grid.channels(len(columns))
    scales: list[Tensor] = []

    def rounded(j: int) -> Tensor:
        if j % span == 0:
            part = slice(j, j + span)
            scales.append(best_scale(columns[part] * kept[part], importance[part], grid.top))
        return nearest(columns[j], scales[-1], grid.top).masked_fill(~kept[j], 0)

    for block in _blocks(len(columns), span):
        settle_block(columns, factor, block, rounded)
    return columns.T.contiguous(), torch.stack(scales, 1)


def nearest(columns: Tensor, scale: Tensor, top: int) -> Tensor:
    """The products of a code and a scale that are nearest.

    Args:
        columns: ``[..., C_out]``.
        scale: ``[C_out]``, above zero.
        top: the largest code.
    """
    wide = scale.to(columns.dtype)
    return (columns / wide).round().clamp(-top, top) * wide


def best_scale(columns: Tensor, importance: Tensor, top: int) -> Tensor:
    """Of the scales that :data:`SHRINKS` says the best for each row: ``bfloat16[C_out]``.

    Args:
        columns: ``[g, C_out]``, a part of a weight's columns.
        importance: ``[g]``, what a squared error in each of them counts.
        top: the largest code.
    """
    whole = _not_below(columns.abs().amax(0) / top)
    best, least = whole, torch.full_like(columns[0], torch.inf)
    for shrink in SHRINKS:
        scale = (whole.float() * shrink).to(torch.bfloat16)
        off = (columns - nearest(columns, scale, top)).square()
        error = (off * importance[:, None]).sum(0)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def _columns(weight: Tensor) -> Tensor:
    """A copy with columns as rows in memory, in float32 or better."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.detach().to(wide).T.clone(memory_format=torch.contiguous_format)


def _not_below(scale: Tensor) -> Tensor:
    """Scales in bfloat16 that are no smaller, and no zero."""
    # Of such numbers a half is as exact, and a product with a code is no subnormal number.
    wide = scale.float().clamp_min(2.0**-100)
    near = wide.to(torch.bfloat16)
    above = (near.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(near.float() < wide, above, near)


def _blocks(channels: int, span: int) -> Iterator[slice]:
    """The columns in blocks; where a scale's part begins, all before it is settled for it."""
    outer = span if span > BLOCK else BLOCK // span * span
    for first in range(0, channels, outer):
        end = min(first + outer, channels)
        for start in range(first, end, BLOCK):
            yield slice(start, min(start + BLOCK, end))
