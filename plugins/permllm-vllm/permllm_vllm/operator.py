"""The product with a packed weight as one operator, which ``torch.compile`` looks past.

How it is fastest depends on the number of tokens, and vLLM traces a model once for all numbers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from permllm.core.codes import Grid
from permllm.core.patterns import Pattern
from permllm.sparse.coded import coded_linear
from permllm.sparse.cpu import packed_linear

Product = Callable[[Tensor, Tensor | None], Tensor]
"""``x W^T + bias`` of ``x`` and ``bias``."""

COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of tokens for which both products are timed."""

NONE = -1
"""In place of the number of a dense product, where none was kept."""

_numbers = itertools.count()
_dense: WeakValueDictionary[int, Product] = WeakValueDictionary()
"""Dense products by number: an operator takes tensors and numbers, but no functions."""

_LIBRARY = torch.library.Library("permllm_vllm", "DEF")
_LIBRARY.define(
    "linear(Tensor x, Tensor values, Tensor indices, Tensor? scales, Tensor? bias, "
    "int n, int m, int bits, int? span, int dense, int most) -> Tensor"
)


def _linear(
    x: Tensor,
    values: Tensor,
    indices: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    n: int,
    m: int,
    bits: int,
    span: int | None,
    dense: int,
    most: int,
) -> Tensor:
    if dense != NONE and x.shape[:-1].numel() > most:
        return _dense[dense](x, bias)
    if scales is None:
        return packed_linear(x, values, indices, bias, Pattern(n, m))
    return coded_linear(x, values, indices, scales, bias, Pattern(n, m), Grid(bits, span))


def _shape(x: Tensor, values: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0])


_LIBRARY.impl("linear", _linear, "CPU")
torch.library.register_fake("permllm_vllm::linear", _shape)

linear = torch.ops.permllm_vllm.linear.default
"""``x W^T + bias``, of ``x`` ``[..., C_in]``, by :func:`permllm.sparse.cpu.packed_linear`, or by
:func:`permllm.sparse.coded.coded_linear` where values are codes of so many bits that have scales;
with more than ``most`` tokens by the dense product of the number ``dense``, unless that is
``NONE``."""


def keep(product: Product) -> int:
    """The number by which a dense product is found, for as long as somebody holds it."""
    number = next(_numbers)
    _dense[number] = product
    return number


def most_tokens(packed: Product, dense: Product, x: Tensor) -> int:
    """Up to how many tokens the packed product is the faster one here and now.

    Args:
        packed, dense: the products.
        x: ``[64, C_in]``.
    """
    most = 0
    for count in COUNTS:
        if _seconds(packed, x[:count]) > _seconds(dense, x[:count]):
            break
        most = count
    return most


def _seconds(product: Product, x: Tensor) -> float:
    """The least of some times, which what else the machine does disturbs least."""
    times = []
    for _ in range(9):
        began = time.perf_counter()
        product(x, None)
        times.append(time.perf_counter() - began)
    return min(times[2:])
