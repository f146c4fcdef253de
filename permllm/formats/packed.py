"""The tensors of a sparse export: values and places of what is pruned, the rest as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from permllm.core.packing import index_bits, pack, unpack
from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.formats.manifest import PackedEntry
from permllm.formats.stored import StoredTensor

VALUES, INDICES = ".values", ".indices"
"""What the names of the two tensors end with that stand for one."""


def packed_tensors(
    tensors: Iterable[StoredTensor], packed: dict[str, PackedEntry]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the files, one or two for each of the model's.

    Args:
        tensors: in stored order.
        packed: gets an entry for each that is packed.
    """
    for stored in tensors:
        if stored.pattern is None:
            yield stored.name, stored.tensor
            continue
        # Experts in one tensor are packed one below the other.
        along = stored.tensor if stored.axis == -1 else stored.tensor.transpose(-1, -2)
        shape = tuple(along.shape)
        packed[stored.name] = PackedEntry(str(stored.pattern), shape, stored.axis)
        values, indices = pack(along.reshape(-1, shape[-1]), stored.pattern)
        yield f"{stored.name}{VALUES}", values
        yield f"{stored.name}{INDICES}", indices


def unpacked_tensors(
    tensors: Iterable[tuple[str, Tensor]], packed: Mapping[str, PackedEntry]
) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors, bit for bit those that :func:`packed_tensors` was given.

    Raises:
        UserError: one of two tensors is missing, or they do not fit one another.
    """
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        whole, _, end = name.rpartition(".")
        if whole not in packed or f".{end}" not in (VALUES, INDICES):
            yield name, tensor
            continue
        parts = waiting.setdefault(whole, {})
        parts[f".{end}"] = tensor
        if len(parts) == 2:
            yield whole, unpacked(whole, packed[whole], waiting.pop(whole))
    for whole, parts in waiting.items():
        missing = VALUES if INDICES in parts else INDICES
        raise UserError(f"there is no '{whole}{missing}' beside '{whole}{next(iter(parts))}'")


def unpacked(name: str, entry: PackedEntry, parts: Mapping[str, Tensor]) -> Tensor:
    """One weight of its values and places.

    Raises:
        UserError: they do not fit one another, or are damaged.
    """
    pattern = Pattern.parse(entry.pattern)
    try:
        weight = unpack(parts[VALUES], parts[INDICES], pattern, entry.shape[-1])
        along = weight.reshape(entry.shape)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"'{name}' cannot be unpacked: {error}") from error
    return along if entry.axis == -1 else along.transpose(-1, -2).contiguous()


def packed_share(pattern: Pattern, itemsize: int) -> float:
    """Bytes of a packed tensor as a share of the dense one's, whose entries have ``itemsize``.

    >>> packed_share(Pattern(2, 4), 2)
    0.5625
    """
    return pattern.density * (1 + index_bits(pattern) / 8 / itemsize)
