"""Products with packed N:M weights whose values are codes of eight or four bits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from permllm.core.codes import Grid, read_codes, values_of
from permllm.core.packing import unpack
from permllm.core.patterns import Pattern
from permllm.sparse.cpu import LIBRARY, Kernel, chunks, kernel_reason, load_kernel

KERNEL_TOKENS = 16
"""With more it is faster to unpack and multiply densely (``benchmarks/sparse_linear.py``)."""


def decoded(values: Tensor, scales: Tensor, grid: Grid, pattern: Pattern, channels: int) -> Tensor:
    """The values ``[C_out, C_in / M * N]`` of codes, in the dtype of the scales.

    Args:
        values: codes as :func:`permllm.core.codes.store_codes` gives them.
        scales: ``[C_out, G]``.
        grid: what the values are rounded to.
        pattern: N:M.
        channels: C_in.
    """
    codes = read_codes(values, pattern.groups(channels) * pattern.n)
    return values_of(codes, scales, grid.kept(channels, pattern)).to(scales.dtype)


def coded_linear(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    grid: Grid,
) -> Tensor:
    """``x W^T + bias``: of a few tokens by the kernel, else dense a few megabytes at a time.

    Args:
        x: ``[..., C_in]``, of the dtype of the scales.
        values, scales, grid, pattern: as for :func:`decoded`.
        indices: as :func:`permllm.core.packing.pack` gives them.
        bias: ``[C_out]``, or None.

    Returns:
        ``[..., C_out]``.
    """
    wants_gradient = x.requires_grad and torch.is_grad_enabled()
    if wants_gradient or not values.is_cpu:
        return _dense(x, values, indices, scales, bias, pattern, grid)
    # As packed_linear, for torch.compile.
    product = torch.ops.permllm.coded_linear if torch.compiler.is_compiling() else _coded_linear
    numbers = pattern.n, pattern.m, grid.bits, grid.span
    y: Tensor = product(x, values, indices, scales, bias, *numbers)
    return y


def _dense(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    grid: Grid,
) -> Tensor:
    whole = decoded(values, scales, grid, pattern, x.shape[-1])
    return functional.linear(x, unpack(whole, indices, pattern, x.shape[-1]), bias)


def _coded_linear(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    n: int,
    m: int,
    bits: int,
    span: int | None,
) -> Tensor:
    pattern, grid, channels = Pattern(n, m), Grid(bits, span), x.shape[-1]
    if kernel_reason(scales.dtype, pattern) is not None:
        return _dense(x, values, indices, scales, bias, pattern, grid)
    kernel = load_kernel()
    assert isinstance(kernel, Kernel)
    if x.shape[:-1].numel() <= KERNEL_TOKENS:
        return kernel.coded_linear(x, values, indices, scales, bias, pattern, grid)
    rows = x.reshape(-1, channels)
    y = rows.new_empty(len(rows), len(values))
    for chunk in chunks(len(values), channels * scales.itemsize):
        part = decoded(values[chunk], scales[chunk], grid, pattern, channels)
        weight = kernel.unpack(part, indices[chunk], pattern, channels)
        y[:, chunk] = functional.linear(rows, weight, None if bias is None else bias[chunk])
    return y.view(*x.shape[:-1], len(values))


LIBRARY.define(
    "coded_linear(Tensor x, Tensor values, Tensor indices, Tensor scales, Tensor? bias, "
    "int n, int m, int bits, int? span) -> Tensor"
)
LIBRARY.impl("coded_linear", _coded_linear, "CPU")


@torch.library.register_fake("permllm::coded_linear")
def _shape(x: Tensor, values: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0])
