"""The tensors of a sparse export: values and places of what is pruned, the rest as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import attrs
import torch
from torch import Tensor

from permllm.core.codes import Grid, check_codes, codes_of, read_codes, store_codes, values_of
from permllm.core.packing import index_bits, pack, unpack
from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.formats.packed_entry import INDICES, SCALES, VALUES, PackedEntry
from permllm.formats.stored import StoredTensor
from permllm.models.checkpoint_files import DTYPE_NAMES


@attrs.frozen(eq=False)
class Rounded:
    """How the rows of a weight were rounded.

    Attributes:
        grid: what to.
        scales: ``bfloat16[rows, G]``, in stored order, experts one below the other.
        dtype: what the model holds the rounded weight in.
    """

    grid: Grid
    scales: Tensor
    dtype: torch.dtype


def packed_tensors(
    tensors: Iterable[StoredTensor],
    packed: dict[str, PackedEntry],
    rounded: Mapping[str, Rounded] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the files, one to three for each of the model's.

    Args:
        tensors: in stored order.
        packed: gets an entry for each that is packed.
        rounded: of the weights whose values are to be codes, by name.
    """
    for stored in tensors:
        if stored.pattern is None:
            yield stored.name, stored.tensor
            continue
        # Experts in one tensor are packed one below the other.
        along = stored.tensor if stored.axis == -1 else stored.tensor.transpose(-1, -2)
        shape = tuple(along.shape)
        entry = PackedEntry(str(stored.pattern), shape, stored.axis)
        values, indices = pack(along.reshape(-1, shape[-1]), stored.pattern)
        how = (rounded or {}).get(stored.name)
        if how is not None:
            kept = how.grid.kept(shape[-1], stored.pattern)
            values = store_codes(codes_of(values, how.scales, kept), how.grid.bits)
            entry = attrs.evolve(
                entry,
                values=how.grid.kind,
                group_size=how.grid.span,
                dtype=_name(_coarser(how.dtype, stored.tensor.dtype)),
            )
            yield f"{stored.name}{SCALES}", how.scales
        packed[stored.name] = entry
        yield f"{stored.name}{VALUES}", values
        yield f"{stored.name}{INDICES}", indices


def unpacked_tensors(
    tensors: Iterable[tuple[str, Tensor]], packed: Mapping[str, PackedEntry]
) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors, bit for bit those that :func:`packed_tensors` was given.

    Raises:
        UserError: one of a weight's tensors is missing, or they do not fit one another.
    """
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        whole, _, end = name.rpartition(".")
        if whole not in packed or f".{end}" not in packed[whole].ends:
            yield name, tensor
            continue
        parts = waiting.setdefault(whole, {})
        parts[f".{end}"] = tensor
        if len(parts) == len(packed[whole].ends):
            yield whole, unpacked(whole, packed[whole], waiting.pop(whole))
    for whole, parts in waiting.items():
        missing = next(end for end in packed[whole].ends if end not in parts)
        raise UserError(f"there is no '{whole}{missing}' beside '{whole}{next(iter(parts))}'")


def unpacked(name: str, entry: PackedEntry, parts: Mapping[str, Tensor]) -> Tensor:
    """One weight of its values, places and maybe scales.

    Raises:
        UserError: they do not fit one another, or are damaged.
    """
    pattern, values = Pattern.parse(entry.pattern), parts[VALUES]
    try:
        if entry.grid is not None:
            values = _decoded(entry, entry.grid, pattern, parts)
        weight = unpack(values, parts[INDICES], pattern, entry.shape[-1])
        along = weight.reshape(entry.shape)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"'{name}' cannot be unpacked: {error}") from error
    return along if entry.axis == -1 else along.transpose(-1, -2).contiguous()


def packed_share(
    pattern: Pattern, itemsize: int, grid: Grid | None = None, channels: int | None = None
) -> float:
    """Bytes of a packed tensor as a share of the dense one's, whose entries have ``itemsize``.

    Args:
        pattern: N:M.
        itemsize: bytes.
        grid: what values are rounded to, where they are.
        channels: of a row; without, the scales of whole rows are not counted.

    >>> packed_share(Pattern(2, 4), 2)
    0.5625
    >>> packed_share(Pattern(2, 4), 2, Grid(4, 128)) * 2
    0.390625
    """
    bits = 8 * itemsize if grid is None else grid.bits
    packed = pattern.density * (bits + index_bits(pattern)) / 8
    if grid is not None:
        packed += _scale_bytes(grid, channels)
    return packed / itemsize


def _scale_bytes(grid: Grid, channels: int | None) -> float:
    """Bytes of scales for each entry of the dense weight."""
    if channels is not None:
        return 2 * grid.scales(channels) / max(1, channels)
    return 0.0 if grid.span is None else 2 / grid.span


def _decoded(
    entry: PackedEntry, grid: Grid, pattern: Pattern, parts: Mapping[str, Tensor]
) -> Tensor:
    """The values ``[rows, K]`` of codes and scales, in the entry's dtype.

    Raises:
        ValueError: they do not fit one another, or are damaged.
    """
    channels = entry.shape[-1]
    check_codes(parts[VALUES], parts[SCALES], grid, channels, pattern)
    codes = read_codes(parts[VALUES], pattern.groups(channels) * pattern.n)
    values = values_of(codes, parts[SCALES], grid.kept(channels, pattern))
    return values.to(DTYPE_NAMES[str(entry.dtype)])


def _coarser(one: torch.dtype, two: torch.dtype) -> torch.dtype:
    """Of two types that a number went through, the one that it was rounded to."""
    return max(one, two, key=lambda dtype: torch.finfo(dtype).eps)


def _name(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPE_NAMES.items() if known == dtype)
