"""Products with packed N:M weights on the CPU, by a kernel that is compiled at first use.

The kernel (``kernel.cpp``) is compiled for the machine that it runs on and kept in
PyTorch's folder of extensions (``TORCH_EXTENSIONS_DIR``); that takes a C++ compiler, ninja
and some twenty seconds, once. Where it cannot be had, or would not be faster than the
dense product, :func:`kernel_reason` says why in words for the user.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from permllm.commands import pip_install
from permllm.core.packing import unpack
from permllm.core.patterns import Pattern

KERNEL_PATTERNS = (Pattern(1, 2), Pattern(2, 4), Pattern(4, 8), Pattern(8, 16))
"""Patterns whose kept weights meet their inputs in whole registers."""

KERNEL_DTYPES = (torch.float32, torch.bfloat16)

_SOURCES = tuple(Path(__file__).parent / name for name in ("kernel.cpp", "registers.h"))
_CHUNK_BYTES = 4 << 20
"""Of the weight that is dense at a time, if that is ``_CHUNK_ROWS`` rows at least.

So much stays in the cache; a whole weight is fresh memory at every call, which the system
maps page by page and which takes longer than to unpack it. Fewer rows would have the dense
product read its input too often.
"""
_CHUNK_ROWS = 192
_SMALL_BYTES = 8 << 20
"""A dense weight of so many bytes passes through the cache as fast as it is multiplied."""


@attrs.frozen
class Kernel:
    """The compiled kernel.

    Attributes:
        ops: its operators.
        instructions: what it was compiled for, such as ``AVX-512 with bfloat16``.
    """

    ops: Any
    instructions: str

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
    return Kernel(ops, ops.instructions())


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
    if wants_gradient or not values.is_cpu or kernel_reason(values.dtype, pattern) is not None:
        return functional.linear(x, unpack(values, indices, pattern, x.shape[-1]), bias)
    kernel = load_kernel()
    assert isinstance(kernel, Kernel)
    if x.shape[:-1].numel() <= kernel_tokens(values.dtype, len(values) * x.shape[-1]):
        return kernel.linear(x, values, indices, bias, pattern)
    rows = x.reshape(-1, x.shape[-1])
    y = dense_by_chunks(kernel, rows, values, indices, bias, pattern)
    return y.view(*x.shape[:-1], len(values))


def kernel_tokens(dtype: torch.dtype, entries: int) -> int:
    """With more tokens it is faster to unpack and multiply densely.

    Measured by ``benchmarks/sparse_linear.py`` on a processor with AVX-512 and bfloat16;
    one that has matrix instructions for bfloat16 will want fewer.

    Args:
        dtype: of the weight.
        entries: of the weight, when dense.
    """
    if entries * dtype.itemsize <= _SMALL_BYTES:
        return 16
    return 32 if dtype == torch.bfloat16 else 64


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
    step = max(_CHUNK_ROWS, _CHUNK_BYTES // (channels * values.itemsize))
    for first in range(0, len(values), step):
        chunk = slice(first, first + step)
        weight = kernel.unpack(values[chunk], indices[chunk], pattern, channels)
        y[:, chunk] = functional.linear(rows, weight, None if bias is None else bias[chunk])
    return y


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
