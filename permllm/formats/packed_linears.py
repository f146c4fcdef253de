"""Linears that hold their weights as an export has them, packed, while it is opened."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from permllm.contexts.evaluation import LinearReport
from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.formats.packed_entry import INDICES, SCALES, VALUES, PackedEntry
from permllm.sparse.cpu import kernel_reason
from permllm.sparse.linear import SparseLinear


def hold_packed(model: nn.Module, packed: Mapping[str, PackedEntry]) -> dict[str, PackedEntry]:
    """Exchange linears for such as hold packed weights, to be filled, where these are faster.

    Args:
        model: on the CPU, or without memory for its parameters.
        packed: what is packed, by the names of the weights.

    Returns:
        those of ``packed`` that are to be unpacked.
    """
    left = {}
    for name, entry in packed.items():
        linear, pattern = _linear_of(model, name), Pattern.parse(entry.pattern)
        if linear is None or kernel_reason(linear.weight.dtype, pattern):
            left[name] = entry
        else:
            model.set_submodule(name.removesuffix(".weight"), _empty(linear, entry))
    return left


def reports_of(model: nn.Module) -> dict[str, LinearReport]:
    """How the linears run that hold packed weights, by name, once they are filled.

    Raises:
        UserError: places or scales are damaged.
    """
    reports = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            try:
                module.check()
            except ValueError as error:
                raise UserError(f"'{name}' is damaged: {error}") from error
            reports[name] = LinearReport(name, module.pattern, "cpu kernel", None, module.held)
    return reports


def _linear_of(model: nn.Module, name: str) -> nn.Linear | None:
    """The linear whose weight it is; None for other tensors, such as those of experts."""
    module = model.get_submodule(name.rpartition(".")[0])
    return module if type(module) is nn.Linear and name.endswith(".weight") else None


def _empty(linear: nn.Linear, entry: PackedEntry) -> SparseLinear:
    """What takes the place of a linear, to be filled; scales have the type of its weight."""
    shapes, dtype = entry.stored_shapes(), linear.weight.dtype
    values = dtype
    if entry.grid is not None:
        values = torch.int8 if entry.grid.bits == 8 else torch.uint8
    types = {VALUES: values, INDICES: torch.uint8, SCALES: dtype}
    parts = {end: torch.empty(shapes[end], dtype=types[end], device="meta") for end in entry.ends}
    return SparseLinear(
        parts[VALUES],
        parts[INDICES],
        linear.bias,
        Pattern.parse(entry.pattern),
        linear.in_features,
        scales=parts.get(SCALES),
        grid=entry.grid,
    )
