"""Packing N:M weights: the kept values, and where in their group of M they stood.

Of every M consecutive entries of a row N are stored, in ascending order of their place,
together with the place as a number of ``ceil(log2 M)`` bits. A group with fewer than N
non-zero entries is filled up with zeros, at its first free places. The numbers of a row
follow one another without gaps, the lowest bit first, the lowest bits of each byte
first; a row begins with a byte of its own. For 2:4 that makes four numbers a byte, and a
bfloat16 weight takes 0.5625 of its size.

What comes back is equal bit for bit, infinities and the payloads of NaN included, but
for one thing: a negative zero is a zero, hence not stored, and comes back as +0.0.
Masking by multiplication leaves negative zeros wherever a negative weight was pruned, so
that they cannot count as values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from permllm.core.patterns import Pattern, nm_mask

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""An integer of as many bytes."""


def index_bits(pattern: Pattern) -> int:
    """Bits of the number that says where in its group of M a value stands."""
    return (pattern.m - 1).bit_length()


def packed_shapes(
    c_out: int, c_in: int, pattern: Pattern
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of values and indices that a weight ``[C_out, C_in]`` packs into.

    Raises:
        ValueError: M does not divide C_in.
    """
    kept = pattern.groups(c_in) * pattern.n
    return (c_out, kept), (c_out, -(-kept * index_bits(pattern) // 8))


def pack(weight: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """The kept values of an N:M weight and their places.

    Args:
        weight: ``[C_out, C_in]``, of any dtype.
        pattern: N:M.

    Returns:
        values ``[C_out, C_in / M * N]`` in the weight's dtype, and indices
        ``uint8[C_out, ceil(C_in / M * N * bits / 8)]``.

    Raises:
        ValueError: the weight is no matrix, M does not divide C_in, or a group has more
            than N non-zero entries; the message names the first such group.
    """
    if weight.ndim != 2:
        raise ValueError(f"only a matrix can be packed, not a tensor of {tuple(weight.shape)}")
    pattern.groups(weight.shape[1])
    occupied = weight != 0
    # Zeros tie, and of equals the mask keeps the earlier: exactly N a group, in order.
    kept = nm_mask(occupied.to(torch.uint8), pattern)
    if (occupied & ~kept).any():
        raise ValueError(_first_violation(occupied, pattern))
    # As integers, since moving a float may quieten a NaN.
    stored = weight.contiguous().view(_INTEGERS[weight.itemsize])
    values = stored.masked_select(kept).view(weight.shape[0], -1)
    values = values.mul_(occupied.masked_select(kept).view_as(values)).view(weight.dtype)
    code = torch.uint8 if pattern.m <= 256 else torch.int32
    places = torch.arange(weight.shape[1], device=weight.device).remainder(pattern.m).to(code)
    codes = places.repeat(weight.shape[0], 1).masked_select(kept).view_as(values)
    return values, pack_numbers(codes, index_bits(pattern))


def unpack(values: Tensor, indices: Tensor, pattern: Pattern, channels: int) -> Tensor:
    """The weight that :func:`pack` was given.

    Args:
        values: ``[C_out, C_in / M * N]``.
        indices: ``uint8[C_out, ceil(C_in / M * N * bits / 8)]``.
        pattern: N:M.
        channels: C_in.

    Returns:
        ``[C_out, C_in]``, in the dtype of the values.

    Raises:
        ValueError: the shapes do not fit one another, or the places of a group are not
            ascending within M, as in a damaged file.
    """
    codes = unpack_codes(values, indices, pattern, channels)
    groups = (values.shape[0], channels // pattern.m)
    stored = values.contiguous().view(_INTEGERS[values.itemsize]).view(*groups, pattern.n)
    weight = stored.new_zeros(*groups, pattern.m)
    weight.scatter_(-1, codes.view(*groups, pattern.n).to(torch.int64), stored)
    return weight.view(len(values), channels).view(values.dtype)


def unpack_codes(values: Tensor, indices: Tensor, pattern: Pattern, channels: int) -> Tensor:
    """The place of every value within its group, after a check of everything.

    Args:
        values, indices, pattern, channels: as for :func:`unpack`.

    Returns:
        ``[C_out, C_in / M * N]``, uint8 where M is at most 256 and else int32.

    Raises:
        ValueError: as for :func:`unpack`.
    """
    shapes = packed_shapes(values.shape[0], channels, pattern)
    if (values.shape, indices.shape) != shapes or indices.dtype != torch.uint8:
        raise ValueError(
            f"values {tuple(values.shape)} and indices {tuple(indices.shape)} of {indices.dtype} "
            f"are not {channels} channels packed as {pattern}, "
            f"which are {shapes[0]} and {shapes[1]} of torch.uint8"
        )
    codes = unpack_numbers(indices, index_bits(pattern), values.shape[1])
    grouped = codes.view(len(codes), -1, pattern.n)
    # The last of an ascending group is its largest; M itself may be beyond a byte.
    fine = (grouped[..., 1:] > grouped[..., :-1]).all(-1) & (grouped[..., -1] <= pattern.m - 1)
    if not fine.all():
        row, group = (~fine).nonzero()[0].tolist()
        raise ValueError(
            f"places {grouped[row, group].tolist()} in row {row}, group {group} are not "
            f"ascending below {pattern.m}: the indices are damaged"
        )
    return codes


def _first_violation(occupied: Tensor, pattern: Pattern) -> str:
    counts = occupied.view(len(occupied), -1, pattern.m).sum(-1)
    over = counts > pattern.n
    row, group = over.nonzero()[0].tolist()
    return (
        f"the weight is not {pattern}: {int(over.sum())} of {over.numel()} groups have more than "
        f"{pattern.n} non-zero entries, the first in row {row}, "
        f"channels {group * pattern.m} to {(group + 1) * pattern.m - 1}"
    )


def _overlaps(bits: int) -> list[tuple[int, int, int]]:
    """For eight numbers in ``bits`` bytes: which number meets which byte, and at what shift.

    A number's lowest bit stands ``shift`` above the byte's lowest, or below if negative.
    """
    return [
        (number, byte, shift)
        for number in range(8)
        for byte in range(bits)
        if -bits < (shift := number * bits - byte * 8) < 8
    ]


def pack_numbers(codes: Tensor, bits: int) -> Tensor:
    """``[C_out, K]`` numbers of some bits as ``uint8[C_out, ceil(K * bits / 8)]``."""
    rows, count = codes.shape
    eights = functional.pad(codes, (0, -count % 8)).view(rows, -1, 8).movedim(-1, 0).contiguous()
    packed = eights.new_zeros(bits, rows, eights.shape[-1])
    for number, byte, shift in _overlaps(bits):
        part = eights[number] << shift if shift >= 0 else eights[number] >> -shift
        packed[byte] |= part & 0xFF
    stream = packed.to(torch.uint8).movedim(0, -1).reshape(rows, -1)
    return stream[:, : -(-count * bits // 8)].contiguous()


def unpack_numbers(indices: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of :func:`pack_numbers`, for ``count`` numbers a row."""
    rows, length = indices.shape
    padded = functional.pad(indices, (0, -(-count // 8) * bits - length))
    stream = padded.view(rows, -1, bits).movedim(-1, 0)
    stream = stream.to(torch.uint8 if bits <= 8 else torch.int32).contiguous()
    codes = stream.new_zeros(8, rows, stream.shape[-1])
    for number, byte, shift in _overlaps(bits):
        part = stream[byte] >> shift if shift >= 0 else stream[byte] << -shift
        codes[number] |= part & ((1 << bits) - 1)
    return codes.movedim(0, -1).reshape(rows, -1)[:, :count].contiguous()
