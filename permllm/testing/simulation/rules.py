"""Which operators take operands of two devices, by CUDA's rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

COPIES = {"aten::copy_"}
"""Read from one device and write to the other."""

INDEXING = {
    "aten::index",
    "aten::_unsafe_index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index_put",
}
"""Take indices from the host for what is on the device, and numbers as values."""

STRICT = {
    "aten::mm",
    "aten::bmm",
    "aten::addmm",
    "aten::baddbmm",
    "aten::dot",
    "aten::cat",
    "aten::stack",
    "aten::embedding",
    "aten::equal",
    "aten::gather",
    "aten::index_select",
    "aten::index_add",
    "aten::index_add_",
    "aten::index_copy",
    "aten::index_copy_",
    "aten::nll_loss_forward",
    "aten::scatter",
    "aten::scatter_",
    "aten::scatter_add",
    "aten::scatter_add_",
    "aten::searchsorted",
    "aten::bucketize",
}
"""Take not even numbers, tensors without axes, from the host, as elementwise operators do."""

WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
    "aten::_unique2",
}
"""Have the host wait, since what they give, or its shape, is known only once it is computed."""


def may_mix(
    name: str, args: Sequence[Any], operands: list[Tensor], holds: Callable[[Tensor], bool]
) -> bool:
    """Whether an operator takes operands of which some are on the device and some are not.

    Args:
        name: of the operator, such as ``aten::mul``.
        args: its arguments.
        operands: the tensors among them.
        holds: whether a tensor is on the device.
    """
    if name in COPIES:
        return True
    first = args[0]
    if name in INDEXING:
        values = args[2] if len(args) > 2 else None
        strange = isinstance(values, Tensor) and values.dim() > 0 and not holds(values)
        return holds(first) and not strange
    numbers = all(one.dim() == 0 for one in operands if not holds(one) and not one.is_meta)
    # What stands on the host is not computed on the device.
    writes_to_host = name.endswith("_") and isinstance(first, Tensor) and not holds(first)
    return numbers and name not in STRICT and not writes_to_host


def waits(name: str, args: Sequence[Any]) -> bool:
    """Whether the host waits for an operator; boolean indices are counted first."""
    if name not in INDEXING:
        return name in WAITING
    return any(
        isinstance(one, Tensor) and not one.dtype.is_floating_point and one.dtype.itemsize == 1
        for one in args[1]
    )
