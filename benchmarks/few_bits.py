"""What 2:4 with values of 8 and 4 bits costs on the CPU, beside dense weights of as many bits.

Times, interleaved in one process, of products with one weight in every form: dense in float32 and
in ``--dtype``; by PyTorch's own products with codes of 8 bits (a scale a row), of 8 bits with
inputs rounded to 8 as well, and of 4 bits (a scale for 128 channels); and N:M as ``SparseLinear``
holds it, with values as they are and as codes of 8 and 4 bits. Of each form there are as many
copies as overflow the caches, one after the other, as in ``sparse_linear.py``.

    OMP_NUM_THREADS=1 python benchmarks/few_bits.py --clock cpu
    OMP_NUM_THREADS=1 python benchmarks/few_bits.py --clock cpu --tokens 4 --shape 1536x576
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/few_bits.py --machine haswell

Prints the median of each, and by how many times N:M is faster than dense in ``--dtype`` and than
each dense form of as many bits (medians of the rounds' ratios; below 1 it is slower).
Whole models beside llama.cpp's, whose products cannot be called one by one: ``decoding.py``.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from copy import deepcopy

import attrs
import click
import torch
from rich.console import Console
from rich.table import Table
from sparse_linear import CLOCKS, CODES, bare_linear, coded_linear
from torch import Tensor
from torch.nn import functional

from permllm.core.codes import codes_of
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.rounding import round_to_nearest
from permllm.sparse import coded, cpu
from permllm.sparse.linear import SparseLinear

Product = Callable[[Tensor], Tensor]
"""From ``[tokens, C_in]`` to ``[tokens, C_out]``."""


@attrs.frozen
class Form:
    """One form of a weight that is N:M.

    Attributes:
        held: bytes.
        error: by how much of the largest output one may differ from the dense product's.
        copied: makes the product with a copy of it.
    """

    held: int
    error: float
    copied: Callable[[], Product]


def dense(weight: Tensor) -> Form:
    """As it is, in its dtype."""

    def copied() -> Product:
        own = weight.clone()
        return lambda x: functional.linear(x.to(own.dtype), own).to(x.dtype)

    return Form(weight.nbytes, 2e-2, copied)


def dense_int8(weight: Tensor) -> Form:
    """Codes of 8 bits with a scale a row, and inputs as they are."""
    rounded, scales = round_to_nearest(weight, torch.ones(weight.shape[1]), CODES["int8"][0])
    codes = codes_of(rounded, scales, weight.shape[1])
    sizes = scales.flatten().to(weight.dtype)

    def copied() -> Product:
        own = codes.clone()
        return lambda x: torch._weight_int8pack_mm(x, own, sizes)

    return Form(codes.nbytes + sizes.nbytes, CODES["int8"][1], copied)


def dense_int8_by_int8(weight: Tensor) -> Form:
    """The same codes, with inputs that are rounded to 8 bits at each call."""
    torch.backends.quantized.engine = "x86"
    rounded, scales = round_to_nearest(weight, torch.ones(weight.shape[1]), CODES["int8"][0])
    sizes, zeros = scales.flatten().double(), torch.zeros(len(weight), dtype=torch.long)
    codes = torch.quantize_per_channel(rounded.float(), sizes, zeros, 0, torch.qint8)
    product = torch.ops.quantized.linear_dynamic

    def copied() -> Product:
        own = torch.ops.quantized.linear_prepack(codes, None)
        return lambda x: product(x.float(), own, True).to(x.dtype)

    return Form(weight.numel() + 4 * len(weight), 5e-2, copied)


def dense_int4(weight: Tensor) -> Form:
    """Codes of 4 bits with a scale for some channels, and inputs as they are."""
    grid = CODES["int4"][0]
    span = grid.channels(weight.shape[1])
    rounded, scales = round_to_nearest(weight, torch.ones(weight.shape[1]), grid)
    codes = codes_of(rounded, scales, span).to(torch.int32) + 8
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    sizes = torch.stack((scales.T, torch.zeros_like(scales.T)), -1).to(weight.dtype).contiguous()
    product = torch.ops.aten._weight_int4pack_mm_for_cpu

    def copied() -> Product:
        own = packed.clone()
        return lambda x: product(x, own, span, sizes)

    return Form(packed.nbytes + sizes.nbytes, CODES["int4"][1], copied)


def sparse(linear: SparseLinear, error: float) -> Form:
    """As permllm holds it."""
    return Form(linear.held, error, lambda: deepcopy(linear))


DENSE: dict[str, Callable[[Tensor], Form]] = {
    "dense float32": lambda weight: dense(weight.float()),
    "dense": dense,
    "dense int8": dense_int8,
    "dense int8 × int8": dense_int8_by_int8,
    "dense int4": dense_int4,
}
"""What this build of PyTorch may lack some of."""

BESIDE = {
    "": ("dense float32", "dense"),
    "int8": ("dense", "dense int8", "dense int8 × int8"),
    "int4": ("dense", "dense int4"),
}
"""What each N:M form is compared with, by the name of its values."""


def forms(weight: Tensor, pattern: Pattern) -> tuple[dict[str, Form], dict[str, str]]:
    """The forms by name, and why there is none of some."""
    found, missing = {}, {}
    for name, make in DENSE.items():
        try:
            found[name] = make(weight)
            found[name].copied()(weight[:1])
        except (AttributeError, RuntimeError) as error:
            found.pop(name, None)
            missing[name] = str(error).partition("\n")[0]
    linear = SparseLinear.from_dense(bare_linear(weight), pattern)
    found[f"{pattern}"] = sparse(linear, 2e-2)
    for name, (grid, error) in CODES.items():
        found[f"{pattern} {name}"] = sparse(coded_linear(weight, pattern, grid), error)
    return found, missing


def seconds(
    products: dict[str, list[Product]], x: Tensor, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Of one product, each round and each form."""
    found: dict[str, list[float]] = {name: [] for name in products}
    names = list(products)
    for first in range(rounds + 1):  # the first warms up
        turn = first % len(names)
        for name in names[turn:] + names[:turn]:
            began = clock()
            for product in products[name]:
                product(x)
            found[name].append((clock() - began) / len(products[name]))
    return {name: times[1:] for name, times in found.items()}


def faster(found: dict[str, list[float]], name: str, beside: str) -> str:
    """By how many times a form is faster than another."""
    if beside not in found:
        return "–"
    pairs = zip(found[beside], found[name], strict=True)
    return f"{statistics.median(other / own for other, own in pairs):.2f}"


@click.command()
@click.option("--shape", multiple=True, default=("2048x2048", "4096x11008"), show_default=True)
@click.option("--tokens", multiple=True, type=int, default=(1, 8), show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Of which medians are shown.")
@click.option("--pattern", default="2:4", show_default=True, help="N:M")
@click.option("--dtype", default="bfloat16", type=click.Choice(["bfloat16", "float32"]))
@click.option("--megabytes", default=96, show_default=True, help="Of copies of each form.")
@click.option("--clock", default="wall", show_default=True, type=click.Choice(list(CLOCKS)))
@click.option("--machine", default="native", show_default=True, help="To build the kernel for.")
def main(
    shape: tuple[str, ...],
    tokens: tuple[int, ...],
    rounds: int,
    pattern: str,
    dtype: str,
    megabytes: int,
    clock: str,
    machine: str,
) -> None:
    """Time N:M linears beside dense ones of as many bits."""
    warnings.filterwarnings("ignore", "torch.quantize_per")
    console, nm = Console(width=110), Pattern.parse(pattern)
    kernel = cpu.build_kernel([f"-march={machine}"])
    for module in (cpu, coded):
        module.load_kernel = lambda: kernel  # type: ignore[attr-defined]
    named = f"for {kernel.instructions}" if isinstance(kernel, cpu.Kernel) else kernel
    console.print(f"threads: {torch.get_num_threads()}, clock: {clock}, kernel: {named}")
    generator = torch.Generator().manual_seed(0)
    for size in shape:
        rows, channels = map(int, size.split("x"))
        weight = torch.randn(rows, channels, generator=generator)
        weight = weight.mul_(nm_mask(weight.abs(), nm)).to(getattr(torch, dtype))
        with torch.inference_mode():
            made, missing = forms(weight, nm)
            products = {
                name: [form.copied() for _ in range(-(-(megabytes << 20) // form.held))]
                for name, form in made.items()
            }
            for count in tokens:
                x = torch.randn(count, channels, generator=generator).to(weight.dtype)
                expected = functional.linear(x.float(), weight.float())
                for name, form in made.items():
                    worst = (products[name][0](x).float() - expected).abs().max()
                    worst /= expected.abs().max()
                    assert worst <= form.error, f"{name} differs from dense by {worst:.1e}"
                found = seconds(products, x, rounds, CLOCKS[clock])
                table = Table(title=f"{size}, {dtype}, tokens: {count}")
                table.add_column("weight")
                for heading in ("bytes a weight", "µs", "times faster"):
                    table.add_column(heading, justify="right")
                for name, form in made.items():
                    values = name.removeprefix(pattern).strip()
                    against = BESIDE[values] if name.startswith(pattern) else ()
                    table.add_row(
                        name,
                        f"{form.held / weight.numel():.2f}",
                        f"{statistics.median(found[name]) * 1e6:,.0f}",
                        ", ".join(f"{faster(found, name, one)} × {one}" for one in against),
                    )
                for name, reason in missing.items():
                    table.add_row(name, "–", "–", f"not in this PyTorch: {reason}")
                console.print(table)


if __name__ == "__main__":
    main()
