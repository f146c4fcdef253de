"""What a step of learning asks of every weight, on CUDA: compiled by Triton when first used.

The same as :mod:`permllm.core.kernels`. PyTorch for CUDA brings Triton along. Operands are read
as they are stored, in any floating-point dtype and, by index, in any order of channels: neither a
copy nor an intermediate result of a weight's size goes through memory. Sums come together in an
order that depends on shapes alone, so that the same operands give the same bits.

Triton's interpreter (``TRITON_INTERPRET=1``) runs the kernels on the CPU; the tests use it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MASK_ROWS = 1024
"""Rows that a program masks: eight for each thread, which reads them 16 bytes at a time."""

_TILE = 512
"""Entries ``(i, j)`` of a placement gradient that a program of four warps sums.

A lane looks at its own row, so that each thread holds 128 sums in registers, and what it reads
serves several of them. Twice as many leave room for one program at a time on a processor, which
would wait for what it reads; half as many read everything twice as often.
"""

_FEWEST_PLACES = 16
"""Of a tile; more where M is larger, since a program has whole groups."""

_LANES = 32
"""Rows looked at together: one for each thread of a warp."""

_PART_ROWS = 1024
"""Rows that one program sums up; the parts are added afterwards."""


def masked_on_cuda(
    words: Tensor,
    scores: Tensor,
    permutation: Tensor,
    channels: Tensor,
    n: int,
    m: int,
    out: Tensor,
) -> None:
    """Write the entries that an N:M mask keeps, and zeros for the others.

    Args:
        words: contiguous integers ``[C_in, R]``, the bytes of a weight.
        scores: contiguous ``[C_in, R]`` of any floating-point dtype, maybe in another order of
            channels; without NaN.
        permutation: ``LongTensor[C_in]``, for each place the row of ``scores`` that stands there.
        channels: ``LongTensor[C_in]``, for each place the row of ``words``.
        n, m: of the pattern.
        out: as ``words``.
    """
    rows = words.shape[1]
    tile = min(_MASK_ROWS, triton.next_power_of_2(rows))
    grid = len(permutation) // m, triton.cdiv(rows, tile)
    # Triton goes by the current device, whatever the tensors'.
    with torch.cuda.device_of(words):
        _masked[grid](words, scores, permutation, channels, out, rows, n, m, tile)


def placement_gradient_on_cuda(
    scores: Tensor,
    gradient: Tensor,
    weight: Tensor | None,
    channels: Tensor,
    local: Tensor,
    n: int,
    m: int,
) -> Tensor:
    """What :func:`permllm.core.placements.placement_gradient` returns.

    Of equal scores the earlier place's is the higher, as in masks.

    Args:
        scores: contiguous ``[G, B, R]`` of any floating-point dtype, without NaN.
        gradient: contiguous ``[C_in, R]``, of the loss with respect to the masked weight, or to
            the mask where there is no ``weight``.
        weight: contiguous ``[C_in, R]``, which the gradient is multiplied with; or None.
        channels: ``LongTensor[G · B]``, for each channel of the scores the row of ``gradient``
            and ``weight``.
        local: contiguous ``LongTensor[G, B]``.
        n, m: of the pattern.

    Returns:
        ``[G, B, B]`` in float32, or in float64 if an operand is.
    """
    blocks, size, rows = scores.shape
    groups, members, movers = _tile_of(size, m)
    place_tiles, mover_tiles = triton.cdiv(size // m, groups), triton.cdiv(size, movers)
    wide = torch.float64 in {x.dtype for x in (scores, gradient, weight) if x is not None}
    parts = torch.empty(
        (triton.cdiv(rows, _PART_ROWS), blocks, size, size),
        dtype=torch.float64 if wide else torch.float32,
        device=scores.device,
    )
    grid = blocks * place_tiles * mover_tiles, len(parts)
    with torch.cuda.device_of(scores):
        _placements[grid](
            scores, gradient, weight, channels, local, parts,
            blocks, size, rows, place_tiles, mover_tiles,
            n, m, groups, members, movers, _LANES, _PART_ROWS,
        )  # fmt: skip
    return parts.sum(0)


def _tile_of(size: int, m: int) -> tuple[int, int, int]:
    """How many groups, members of each, and channels that may come a program looks at.

    All are powers of two, as Triton wants them.

    >>> _tile_of(64, 4), _tile_of(24, 3), _tile_of(64, 32)
    ((4, 4, 32), (4, 4, 32), (1, 32, 16))

    Args:
        size: B, of a block.
        m: of the pattern.
    """
    size, members = (triton.next_power_of_2(x) for x in (size, m))
    groups = triton.cdiv(min(_FEWEST_PLACES, size), members)
    return groups, members, min(_TILE // (groups * members), size)


@triton.jit
def _upcast(scores: tl.tensor) -> tl.tensor:
    """In float32, or in float64 if they are: the interpreter compares bfloat16 as integers."""
    return scores if scores.dtype == tl.float64 else scores.to(tl.float32)


@triton.jit
def _ahead(other: tl.tensor, other_place: tl.tensor, own: tl.tensor, place: tl.tensor) -> tl.tensor:
    """Whether another entry of the group beats one's own; the earlier wins a draw."""
    return (other > own) | ((other == own) & (other_place < place))


@triton.jit
def _masked(
    words: tl.tensor,
    scores: tl.tensor,
    permutation: tl.tensor,
    channels: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    n: tl.constexpr,
    m: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """A group of M and a tile of rows: an entry's rank is the number of those ahead of it.

    The group is read again for each of its entries, but from the cache.
    """
    group = tl.program_id(0) * m
    row = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = row < rows
    for place in range(m):
        start = tl.load(permutation + group + place) * rows
        own = _upcast(tl.load(scores + start + row, mask=inside))
        rank = tl.zeros([tile], tl.int32)
        for rival in range(m):
            start = tl.load(permutation + group + rival) * rows
            theirs = _upcast(tl.load(scores + start + row, mask=inside))
            rank += _ahead(theirs, rival, own, place).to(tl.int32)
        start = tl.load(channels + group + place) * rows
        kept = tl.load(words + start + row, mask=inside & (rank < n), other=0)
        tl.store(out + start + row, kept, mask=inside)


@triton.jit
def _mask_gradient(
    gradient: tl.tensor, weight: tl.tensor, entries: tl.tensor, mask: tl.tensor, dtype: tl.constexpr
) -> tl.tensor:
    """``∂L/∂W' ⊙ W``, or what is given where there is no weight."""
    given = tl.load(gradient + entries, mask=mask, other=0).to(dtype)
    if weight is not None:
        given *= tl.load(weight + entries, mask=mask, other=0).to(dtype)
    return given


@triton.jit
def _nth_of_others(
    entries: tl.tensor, rank: tl.tensor, n: tl.constexpr, rows: tl.constexpr
) -> tl.tensor:
    """``[members * groups, rows]``: what belongs to the N-th highest of the others in the group.

    Args:
        entries, rank: ``[members, groups, rows]``, what belongs to each and how high it is.
    """
    nth = tl.sum(tl.where(rank == n - 1, entries, 0), 0)[None, :, :]
    below = tl.sum(tl.where(rank == n, entries, 0), 0)[None, :, :]
    # Without one's own, all below it move up.
    found = tl.where(rank < n, below, nth)
    # In two dimensions, so that it does not lay out the sums, which want rows along a warp.
    return found.reshape(entries.shape[0] * entries.shape[1], rows)


@triton.jit
def _placements(
    scores: tl.tensor,
    gradient: tl.tensor,
    weight: tl.tensor,
    channels: tl.tensor,
    local: tl.tensor,
    parts: tl.tensor,
    blocks: tl.tensor,
    size: tl.tensor,
    rows: tl.tensor,
    place_tiles: tl.tensor,
    mover_tiles: tl.tensor,
    n: tl.constexpr,
    m: tl.constexpr,
    groups: tl.constexpr,
    members: tl.constexpr,
    movers: tl.constexpr,
    lanes: tl.constexpr,
    part_rows: tl.constexpr,
) -> None:
    """The places of some groups of a block, some channels that may come there, a part of the rows.

    Places are ``[members, groups]``: members first, so that those of a group lie in one thread.
    """
    dtype: tl.constexpr = parts.dtype.element_ty
    tiles = place_tiles * mover_tiles
    block = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    first = block * size

    mover = tile // place_tiles * movers + tl.arange(0, movers)
    exists = mover < size
    score_at = ((first + mover) * rows)[:, None]
    given_at = (tl.load(channels + first + mover, mask=exists, other=0) * rows)[:, None]

    group = (tile % place_tiles * groups + tl.arange(0, groups)) * m
    member = tl.arange(0, members)[:, None]
    place = group[None, :] + member
    taken = (member < m) & (place < size)
    stands = first + tl.load(local + first + place, mask=taken, other=0)
    own_at = (stands * rows)[:, :, None]
    lost_at = (tl.load(channels + stands, mask=taken, other=0) * rows)[:, :, None]

    total = tl.zeros([members * groups, movers, lanes], dtype)
    begin = tl.program_id(1) * part_rows
    for next_row in range(begin, min(begin + part_rows, rows), lanes):
        row = next_row + tl.arange(0, lanes)
        inside = row < rows

        here = taken[:, :, None] & inside[None, None, :]
        own = tl.load(scores + own_at + row[None, None, :], mask=here, other=0).to(dtype)
        theirs = _mask_gradient(gradient, weight, lost_at + row[None, None, :], here, dtype)
        # Members beyond M may be of any rank: they add the zeros that they are.
        rank = tl.zeros([members, groups, lanes], tl.int32)
        for rival in tl.static_range(m):
            rival_at = (first + tl.load(local + first + group + rival, mask=group < size)) * rows
            there = (group < size)[:, None] & inside[None, :]
            other = tl.load(scores + rival_at[:, None] + row[None, :], mask=there, other=0)
            ahead = _ahead(other.to(dtype)[None, :, :], rival, own, member[:, :, None])
            rank += ahead.to(tl.int32)
        threshold = _nth_of_others(own, rank, n, lanes)[:, None, :]
        lost = _nth_of_others(theirs, rank, n, lanes)[:, None, :]

        coming = exists[:, None] & inside[None, :]
        moved = tl.load(scores + score_at + row[None, :], mask=coming, other=0).to(dtype)
        given = _mask_gradient(gradient, weight, given_at + row[None, :], coming, dtype)
        # Beyond the last row all scores are zero, and none is higher than another.
        gain = given[None, :, :] - lost
        total = tl.where(moved[None, :, :] > threshold, total + gain, total)

    part = parts + (tl.program_id(1).to(tl.int64) * blocks + block) * size * size
    entry = mover[None, :] * size + place.reshape(members * groups)[:, None]
    written = exists[None, :] & taken.reshape(members * groups)[:, None]
    tl.store(part + entry, tl.sum(total, 2), mask=written)
