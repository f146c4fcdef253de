"""Products with packed N:M weights whose values are codes of eight or four bits."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from permllm.core.codes import Grid, read_codes, store_codes, values_of
from permllm.core.packing import pack, unpack
from permllm.core.patterns import Pattern
from permllm.sparse import choice
from permllm.sparse.choice import Product
from permllm.sparse.cpu import (
    LIBRARY,
    Kernel,
    chunks,
    kernel_reason,
    load_kernel,
    measured_ways,
)


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
    """``x W^T + bias`` in the way that is fastest for as many tokens and this weight.

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
    outputs = values.shape[0]
    names = _ways_here(scales.dtype, n, m, bits, span, outputs * channels)
    way = WAYS[choice.of_tokens(names, x.shape[:-1].numel())]
    y = way(kernel, x.reshape(-1, channels), values, indices, scales, bias, pattern, grid)
    return y.view(*x.shape[:-1], outputs)


@functools.lru_cache(maxsize=256)
def _ways_here(
    dtype: torch.dtype, n: int, m: int, bits: int, span: int | None, entries: int
) -> tuple[str, ...]:
    """As :func:`fastest_ways`, of this machine's kernel, some microseconds sooner."""
    kernel = load_kernel()
    assert isinstance(kernel, Kernel)
    return fastest_ways(kernel, dtype, Pattern(n, m), Grid(bits, span), entries)


def fastest_ways(
    kernel: Kernel, dtype: torch.dtype, pattern: Pattern, grid: Grid, entries: int
) -> tuple[str, ...]:
    """Which of :data:`WAYS` is the fastest on this machine, for each of ``choice.COUNTS`` tokens.

    Args:
        kernel: the kernel.
        dtype: of the scales.
        pattern: of the weight.
        grid: what its values are rounded to; how many share a scale makes no difference.
        entries: of the weight, when dense.
    """

    def products(weight: Tensor) -> dict[str, Product]:
        values, indices = pack(weight, pattern)
        # Which codes makes no difference either.
        codes = store_codes(values.round().clamp(-grid.top, grid.top).to(torch.int8), grid.bits)
        scales = torch.ones(len(weight), grid.scales(weight.shape[1]), dtype=dtype)
        parts = codes, indices, scales, None, pattern, grid
        return {
            name: lambda x, way=way: way(kernel, x, *parts)  # type: ignore[misc]
            for name, way in WAYS.items()
        }

    return measured_ways(kernel, tuple(WAYS), grid.kind, dtype, pattern, entries, products)


def dense_by_chunks(
    kernel: Kernel,
    rows: Tensor,
    values: Tensor,
    indices: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    grid: Grid,
) -> Tensor:
    """As :func:`permllm.sparse.cpu.dense_by_chunks`, of codes."""
    channels = rows.shape[1]
    y = rows.new_empty(len(rows), len(values))
    for chunk in chunks(len(values), channels * scales.itemsize):
        part = kernel.decode(values[chunk], scales[chunk], pattern, grid, channels)
        weight = kernel.unpack(part, indices[chunk], pattern, channels)
        y[:, chunk] = functional.linear(rows, weight, None if bias is None else bias[chunk])
    return y


WAYS: dict[str, Callable[..., Tensor]] = {
    "channels": Kernel.coded_linear,
    "dense": dense_by_chunks,
}
"""Ways to the same product, as :data:`permllm.sparse.cpu.WAYS`. Registers of tokens are slower for
codes than registers of channels, whatever the number of tokens."""


LIBRARY.define(
    "coded_linear(Tensor x, Tensor values, Tensor indices, Tensor scales, Tensor? bias, "
    "int n, int m, int bits, int? span) -> Tensor"
)
LIBRARY.impl("coded_linear", _coded_linear, "CPU")


@torch.library.register_fake("permllm::coded_linear")
def _shape(x: Tensor, values: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0])
