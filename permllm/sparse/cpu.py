"""Products with packed N:M weights on the CPU, by a kernel that is compiled at first use.

The kernel (``kernel.cpp``) is compiled for the machine that it runs on and kept in
PyTorch's folder of extensions (``TORCH_EXTENSIONS_DIR``); that takes a C++ compiler, ninja
and some twenty seconds, once. Where it cannot be had, or would not be faster than the
dense product, :func:`kernel_reason` says why in words for the user.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from permllm.commands import pip_install
from permllm.core.codes import Grid
from permllm.core.packing import pack, unpack
from permllm.core.patterns import Pattern, nm_mask
from permllm.sparse import choice
from permllm.sparse.choice import Choices, Product

KERNEL_PATTERNS = (Pattern(1, 2), Pattern(2, 4), Pattern(4, 8), Pattern(8, 16))
"""Patterns whose kept weights meet their inputs in whole registers."""

KERNEL_DTYPES = (torch.float32, torch.bfloat16)

_NAMES = ("kernel.cpp", "many_tokens.h", "places.h", "registers.h", "rows.h", "weights.h")
_SOURCES = tuple(Path(__file__).parent / name for name in _NAMES)
_CHUNK_BYTES = 4 << 20
"""Of the weight that is dense at a time, if that is ``_CHUNK_ROWS`` rows at least.

So much stays in the cache; a whole weight is fresh memory at every call, which the system
maps page by page and which takes longer than to unpack it. Fewer rows would have the dense
product read its input too often.
"""
_CHUNK_ROWS = 192
_SHAPES = {"small": (1024, 1024), "large": (2048, 2048)}
"""Weights that ways are measured with; those of up to twice the entries go by
the small one."""


@attrs.frozen
class Kernel:
    """The compiled kernel.

    Attributes:
        ops: its operators.
        instructions: what it was compiled for, such as ``AVX-512 with bfloat16``.
        choices: which way was the fastest on this machine.
    """

    ops: Any
    instructions: str
    choices: Choices

    def linear(
        self, x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, pattern: Pattern
    ) -> Tensor:
        """``x W^T + bias``, summed in float32.

        Args:
            x: ``[..., C_in]``, of the dtype of the values.
            values, indices: as :func:`permllm.core.packing.pack` gives them, on the CPU.
            bias: ``[C_out]``, or None.
            pattern: N:M.

        Returns:
            ``[..., C_out]``, of the dtype of the values.
        """
        product: Tensor = self.ops.nm_linear(x, values, indices, bias, pattern.n, pattern.m)
        return product

    def linear_of_many(
        self, x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, pattern: Pattern
    ) -> Tensor:
        """As :meth:`linear`, by registers that hold a channel of several tokens."""
        product: Tensor = self.ops.nm_linear_many(x, values, indices, bias, pattern.n, pattern.m)
        return product

    def coded_linear(
        self,
        x: Tensor,
        codes: Tensor,
        indices: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        pattern: Pattern,
        grid: Grid,
    ) -> Tensor:
        """``x W^T + bias`` of codes and their scales, summed in float32.

        Args:
            x: ``[..., C_in]``, of the dtype of the scales, float32 or bfloat16.
            codes: as :func:`permllm.core.codes.store_codes` gives them, on the CPU.
            indices: as :func:`permllm.core.packing.pack` gives them.
            scales: ``[C_out, G]``.
            bias: ``[C_out]``, or None.
            pattern: N:M.
            grid: what values are rounded to.

        Returns:
            ``[..., C_out]``, of the dtype of ``x``.
        """
        kept = grid.kept(x.shape[-1], pattern)
        n, m = pattern.n, pattern.m
        product: Tensor = self.ops.nm_coded_linear(
            x, codes, indices, scales, bias, n, m, grid.bits, kept
        )
        return product

    def decode(
        self, codes: Tensor, scales: Tensor, pattern: Pattern, grid: Grid, channels: int
    ) -> Tensor:
        """The values ``[C_out, C_in / M * N]`` of codes, in the dtype of the scales."""
        part, kept = grid.kept(channels, pattern), pattern.groups(channels) * pattern.n
        values: Tensor = self.ops.nm_decode(codes, scales, kept, grid.bits, part)
        return values

    def unpack(self, values: Tensor, indices: Tensor, pattern: Pattern, channels: int) -> Tensor:
        """As :func:`permllm.core.packing.unpack`, for places that were checked before."""
        weight: Tensor = self.ops.nm_unpack(values, indices, pattern.n, pattern.m, channels)
        return weight


@functools.cache
def load_kernel() -> Kernel | str:
    """The kernel, compiled unless it was before; or why it cannot be had."""
    return build_kernel(("-march=native",))


def build_kernel(machine: Sequence[str]) -> Kernel | str:
    """Compile the kernel.

    Args:
        machine: the flags that name the machine to compile for.

    Returns:
        the kernel, or the reason why there is none, as a clause.
    """
    flags = ["-O3", *machine, "-fopenmp"]
    name = f"permllm_nm_{_fingerprint(flags)}"
    torch_ops: Any = torch.ops
    try:
        library = _extensions_folder() / f"{name}.so"
        if library.exists():
            torch_ops.load_library(library)
        elif (reason := _compile(name, flags, library)) is not None:
            return reason
    except (RuntimeError, OSError) as error:
        return f"the kernel could not be compiled or loaded: {_gist(str(error))}"
    ops = getattr(torch_ops, name)
    return Kernel(ops, ops.instructions(), Choices(library.with_suffix(".json")))


def _extensions_folder() -> Path:
    """Where PyTorch keeps what it compiles."""
    from torch.utils import cpp_extension

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    return Path(root) / "permllm"


def _compile(name: str, flags: Sequence[str], library: Path) -> str | None:
    """Compile and load the kernel, and keep it as ``library``; or why that cannot be.

    It appears there all at once: a process that is killed leaves neither half a library nor
    a lock for others to wait for, and of two that compile at once either may win.
    """
    from torch.utils import cpp_extension

    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler!r} (the variable CXX may name another)"
    if not cpp_extension.is_ninja_available():
        return f"ninja is missing, which compiles the kernel ({pip_install('ninja')})"
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        # Without -fopenmp at linking, its threads are those of the OpenMP that torch brought.
        cpp_extension.load(
            name,
            [str(_SOURCES[0])],
            extra_cflags=list(flags),
            build_directory=folder,
            is_python_module=False,
        )
        (Path(folder) / f"{name}.so").replace(library)
    return None


def kernel_reason(dtype: torch.dtype, pattern: Pattern) -> str | None:
    """Why the kernel does not multiply weights of this kind, or None where it does."""
    if pattern not in KERNEL_PATTERNS:
        known = ", ".join(map(str, KERNEL_PATTERNS))
        return f"the CPU kernel is for {known}, not {pattern}"
    if dtype not in KERNEL_DTYPES:
        return (
            f"the CPU kernel is for float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
        )
    kernel = load_kernel()
    if isinstance(kernel, str):
        return kernel
    if kernel.instructions == "plain":
        return "this CPU has neither AVX2 nor AVX-512, and without them dense is faster"
    return None


def packed_linear(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, pattern: Pattern
) -> Tensor:
    """``x W^T + bias`` in the way that is fastest for as many tokens and this weight.

    Args:
        x: ``[..., C_in]``, of the dtype of the values.
        values, indices: as :func:`permllm.core.packing.pack` gives them.
        bias: ``[C_out]``, or None.
        pattern: N:M.

    Returns:
        ``[..., C_out]``.
    """
    wants_gradient = x.requires_grad and torch.is_grad_enabled()
    if wants_gradient or not values.is_cpu:
        return functional.linear(x, unpack(values, indices, pattern, x.shape[-1]), bias)
    # One operator that torch.compile looks past, since the way depends on the number of tokens;
    # without it, the call is some microseconds shorter.
    product = torch.ops.permllm.packed_linear if torch.compiler.is_compiling() else _packed_linear
    y: Tensor = product(x, values, indices, bias, pattern.n, pattern.m)
    return y


def _packed_linear(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, n: int, m: int
) -> Tensor:
    pattern = Pattern(n, m)
    if kernel_reason(values.dtype, pattern) is not None:
        return functional.linear(x, unpack(values, indices, pattern, x.shape[-1]), bias)
    kernel = load_kernel()
    assert isinstance(kernel, Kernel)
    rows = x.reshape(-1, x.shape[-1])
    names = fastest_ways(kernel, values.dtype, pattern, len(values) * x.shape[-1])
    way = WAYS[choice.of_tokens(names, len(rows))]
    return way(kernel, rows, values, indices, bias, pattern).view(*x.shape[:-1], len(values))


def fastest_ways(
    kernel: Kernel, dtype: torch.dtype, pattern: Pattern, entries: int
) -> tuple[str, ...]:
    """Which of :data:`WAYS` is the fastest on this machine, for each of ``choice.COUNTS`` tokens.

    Args:
        kernel: the kernel.
        dtype, pattern: of the weight.
        entries: of the weight, when dense.
    """

    def products(weight: Tensor) -> dict[str, Product]:
        values, indices = pack(weight.to(dtype), pattern)
        return {
            name: partial(way, kernel, values=values, indices=indices, bias=None, pattern=pattern)
            for name, way in WAYS.items()
        }

    return measured_ways(kernel, tuple(WAYS), "", dtype, pattern, entries, products)


def measured_ways(
    kernel: Kernel,
    names: tuple[str, ...],
    kind: str,
    dtype: torch.dtype,
    pattern: Pattern,
    entries: int,
    products: Callable[[Tensor], Mapping[str, Product]],
) -> tuple[str, ...]:
    """Which of some ways is the fastest on this machine, for each of ``choice.COUNTS`` tokens.

    Measured once for each kind of values, dtype and pattern, and for small and large weights
    apart, in a second or two; that is kept beside the compiled kernel.

    Args:
        kernel: the kernel.
        names: of the ways, those for few tokens first.
        kind: what stands for values, such as ``int8``; empty where they are as they are.
        dtype, pattern: of the weight.
        entries: of the weight, when dense.
        products: from an N:M weight in float32, the ways to multiply with it.
    """
    small = math.prod(_SHAPES["small"])
    size = "small" if entries <= 2 * small else "large"
    key = " ".join(filter(None, (str(dtype).removeprefix("torch."), str(pattern), kind, size)))

    def measure() -> tuple[str, ...]:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(_SHAPES[size], generator=generator)
        weight *= nm_mask(weight.abs(), pattern)
        x = torch.randn(choice.COUNTS[-1], weight.shape[1], generator=generator).to(dtype)
        return choice.fastest(products(weight), x)

    return kernel.choices.of(key, names, measure)


def dense_by_chunks(
    kernel: Kernel,
    rows: Tensor,
    values: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
) -> Tensor:
    """The dense product, a few megabytes of the weight at a time.

    Args:
        kernel: which unpacks.
        rows: ``[tokens, C_in]``.
        values, indices, bias, pattern: as for :func:`packed_linear`.

    Returns:
        ``[tokens, C_out]``.
    """
    channels = rows.shape[1]
    y = rows.new_empty(len(rows), len(values))
    for chunk in chunks(len(values), channels * values.itemsize):
        weight = kernel.unpack(values[chunk], indices[chunk], pattern, channels)
        y[:, chunk] = functional.linear(rows, weight, None if bias is None else bias[chunk])
    return y


def chunks(rows: int, row_bytes: int) -> Iterator[slice]:
    """The rows of a weight in parts that stay in the cache when they are dense."""
    step = max(_CHUNK_ROWS, _CHUNK_BYTES // max(1, row_bytes))
    for first in range(0, rows, step):
        yield slice(first, first + step)


WAYS: dict[str, Callable[..., Tensor]] = {
    "channels": Kernel.linear,
    "tokens": Kernel.linear_of_many,
    "dense": dense_by_chunks,
}
"""Ways to the same product: registers that hold channels of one token, or tokens of one channel;
or dense products with weights that are unpacked. Each is for more tokens than the one before."""


LIBRARY = torch.library.Library("permllm", "FRAGMENT")
"""The operators that ``torch.compile`` sees in place of products with packed weights."""

LIBRARY.define(
    "packed_linear(Tensor x, Tensor values, Tensor indices, Tensor? bias, int n, int m) -> Tensor"
)
LIBRARY.impl("packed_linear", _packed_linear, "CPU")


@torch.library.register_fake("permllm::packed_linear")
def _shape(x: Tensor, values: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0])


def _gist(message: str) -> str:
    """The compiler's own error, of all that ninja prints; else the first line."""
    lines = message.strip().splitlines() or ["no reason given"]
    return next((line for line in lines if "error:" in line), lines[0])


def _fingerprint(flags: Sequence[str]) -> str:
    """Of all that the compiled file depends on: a home may be shared by several machines."""
    known = hashlib.sha256()
    for part in (*flags, torch.__version__, os.environ.get("CXX", "c++"), _processor()):
        known.update(part.encode() + b"\0")
    for source in _SOURCES:
        known.update(source.read_bytes())
    return known.hexdigest()[:16]


def _processor() -> str:
    """The instructions that the processor knows."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()}"
