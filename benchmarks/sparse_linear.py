"""What a packed N:M linear costs on the CPU, against the dense one and torch.compile.

Times, interleaved in one process: the dense product; the same compiled by torch.compile;
a compiled product that reads the packed weight (places decoded and inputs gathered in one
loop of inductor's); each of the ways in ``permllm.sparse.cpu``; and what ``SparseLinear``
chooses, with values as they are and rounded to codes of 8 bits (a scale a row) and 4 (a scale
for 128 channels; beside dense weights of as few: ``few_bits.py``). Of each weight there
are as many copies as overflow the caches, one after the other, since decoding meets every
weight of a model before it meets one again. Prints the median of dense, and by how many
times each way is faster (the median of the rounds' ratios; below 1 it is slower).

    OMP_NUM_THREADS=1 python benchmarks/sparse_linear.py
    OMP_NUM_THREADS=1 python benchmarks/sparse_linear.py --tokens 16 --tokens 32 --tokens 64
    OMP_NUM_THREADS=1 python benchmarks/sparse_linear.py --pattern 4:8 --dtype bfloat16

On a machine that others use as well, ``--clock cpu`` counts the time of this process alone;
with several threads it adds theirs up, so that it is for one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial

import attrs
import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from permllm.core.codes import Grid, codes_of, store_codes
from permllm.core.packing import pack
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.rounding import round_to_nearest
from permllm.sparse import cpu
from permllm.sparse.linear import SparseLinear

SHAPES = {
    "SmolLM2-135M k, v": (192, 576),
    "SmolLM2-135M q, o": (576, 576),
    "SmolLM2-135M gate, up": (1536, 576),
    "SmolLM2-135M down": (576, 1536),
    "Llama-1B q, o": (2048, 2048),
    "Llama-7B q, k, v, o": (4096, 4096),
    "Llama-7B down": (4096, 11008),
}
"""C_out and C_in."""

CODES = {"int8": (Grid(8), 0.03), "int4": (Grid(4, 128), 0.3)}
"""What values are rounded to, and by how much of the largest a product may differ then."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Way = Callable[[int], Tensor]
"""The product with the given copy of the weight."""


def compiled_product(x: Tensor, values: Tensor, indices: Tensor, pattern: Pattern) -> Tensor:
    """The packed product in PyTorch's own words, for M of 2, 4 or 16: no number crosses a byte."""
    bits = (pattern.m - 1).bit_length()
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    codes = (indices.unsqueeze(-1) >> shifts) & (pattern.m - 1)
    codes = codes.flatten(1)[:, : values.shape[1]]
    groups = torch.arange(values.shape[1]) // pattern.n * pattern.m
    picked = x[:, codes.to(torch.int64) + groups]
    return (picked.float() * values.float()).sum(-1).to(x.dtype)


def bare_linear(weight: Tensor) -> nn.Linear:
    """A linear of this weight, without bias and gradients."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def coded_linear(weight: Tensor, pattern: Pattern, grid: Grid) -> SparseLinear:
    """A linear of this weight, rounded."""
    channels = weight.shape[1]
    rounded, scales = round_to_nearest(weight, torch.ones(channels), grid)
    values, indices = pack(rounded, pattern)
    codes = store_codes(codes_of(values, scales, grid.kept(channels, pattern)), grid.bits)
    scales = scales.to(weight.dtype)
    return SparseLinear(codes, indices, None, pattern, channels, scales=scales, grid=grid)


@attrs.frozen
class Case:
    """One measurement: a weight, how many tokens, and who multiplies.

    Attributes:
        shape: C_out, C_in.
        tokens: rows of the input.
        dtype: of weight and input.
        pattern: N:M.
        compiled: whether torch.compile takes part, which takes seconds to compile.
        megabytes: what the copies of the packed weight come to.
    """

    shape: tuple[int, int]
    tokens: int
    dtype: torch.dtype
    pattern: Pattern
    compiled: bool
    megabytes: int

    def ways(self) -> tuple[int, dict[str, Way]]:
        """How many copies of the weight there are, and the ways to multiply with one."""
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(self.shape, generator=generator)
        weight = weight.mul_(nm_mask(weight.abs(), self.pattern)).to(self.dtype)
        x = torch.randn(self.tokens, self.shape[1], generator=generator).to(self.dtype)
        values, indices = pack(weight, self.pattern)
        copies = -(-(self.megabytes << 20) // (values.nbytes + indices.nbytes))
        dense = [weight.clone() for _ in range(copies)]
        modules = [bare_linear(copy) for copy in dense]
        layers = [
            SparseLinear.from_packed(
                values.clone(), indices.clone(), self.pattern, self.shape[1]
            ).requires_grad_(False)
            for _ in range(copies)
        ]
        ways: dict[str, Way] = {"dense": lambda copy: modules[copy](x)}
        if self.compiled:
            ways |= self._compiled(x, dense, layers)
        kernel = cpu.load_kernel()
        if isinstance(kernel, cpu.Kernel):
            ways |= self._with_kernel(kernel, x, layers)
        ways["SparseLinear"] = lambda copy: layers[copy](x)
        for name, (grid, _) in CODES.items():
            one = coded_linear(weight, self.pattern, grid)
            ways[name] = partial(_product, [deepcopy(one) for _ in range(copies)], x)
        return copies, ways

    def _compiled(
        self, x: Tensor, dense: Sequence[Tensor], layers: Sequence[SparseLinear]
    ) -> dict[str, Way]:
        linear = torch.compile(functional.linear, dynamic=False)
        ways: dict[str, Way] = {"compiled dense": lambda copy: linear(x, dense[copy])}
        if self.pattern.m in (2, 4, 16):
            product = torch.compile(compiled_product, dynamic=False)
            ways["compiled packed"] = lambda copy: product(
                x, layers[copy].values, layers[copy].indices, self.pattern
            )
        return ways

    def _with_kernel(
        self, kernel: cpu.Kernel, x: Tensor, layers: Sequence[SparseLinear]
    ) -> dict[str, Way]:
        def by(way: Callable[..., Tensor]) -> Way:
            return lambda copy: way(
                kernel, x, layers[copy].values, layers[copy].indices, None, self.pattern
            )

        return {f"by {name}": by(way) for name, way in cpu.WAYS.items()}


def _product(layers: Sequence[nn.Module], x: Tensor, copy: int) -> Tensor:
    product: Tensor = layers[copy](x)
    return product


def check(ways: Mapping[str, Way], tolerance: float) -> None:
    """Raises AssertionError where a way does not compute what dense computes."""
    expected = ways["dense"](0).float()
    for name, way in ways.items():
        worst = (way(0).float() - expected).abs().max() / expected.abs().max()
        allowed = CODES[name][1] if name in CODES else tolerance
        assert worst <= allowed, f"{name} differs from dense by {worst:.1e}"


def seconds_of_rounds(
    case: Case, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of one product, each round and each way."""
    copies, ways = case.ways()
    check(ways, 1e-4 if case.dtype == torch.float32 else 2e-2)
    found: dict[str, list[float]] = {name: [] for name in ways}
    # The first round warms up.
    for first in range(rounds + 1):
        names = list(ways)
        # Each is the first of a round in its turn.
        for name in names[first % len(names) :] + names[: first % len(names)]:
            began = clock()
            for copy in range(copies):
                ways[name](copy)
            found[name].append((clock() - began) / copies)
    return {name: seconds[1:] for name, seconds in found.items()}


def add_row(table: Table, where: str, case: Case, found: Mapping[str, list[float]]) -> None:
    """The median of dense, and by how many times the others are faster."""
    cells = [f"{where}, {case.shape[0]} × {case.shape[1]}", str(case.tokens)]
    cells.append(f"{statistics.median(found['dense']) * 1e6:,.0f}")
    for heading in [str(column.header) for column in table.columns][len(cells) :]:
        pairs = zip(found["dense"], found.get(heading, ()), strict=False)
        ratios = [dense / other for dense, other in pairs]
        cells.append(f"{statistics.median(ratios):.2f}" if ratios else "–")
    table.add_row(*cells)


@click.command()
@click.option("--rounds", default=7, show_default=True, help="repetitions of each measurement")
@click.option("--pattern", default="2:4", show_default=True, help="N:M")
@click.option("--tokens", multiple=True, type=int, default=(1, 4, 16, 128), show_default=True)
@click.option("--dtype", multiple=True, default=("float32", "bfloat16"), show_default=True)
@click.option("--shape", multiple=True, help="only those whose name contains this")
@click.option("--compile-tokens", default=1, show_default=True, help="torch.compile up to so many")
@click.option("--megabytes", default=96, show_default=True, help="of packed weight in a round")
@click.option("--clock", default="wall", show_default=True, type=click.Choice(list(CLOCKS)))
def main(
    rounds: int,
    pattern: str,
    tokens: tuple[int, ...],
    dtype: tuple[str, ...],
    shape: tuple[str, ...],
    compile_tokens: int,
    megabytes: int,
    clock: str,
) -> None:
    """Time packed N:M linears against dense ones."""
    console = Console(width=150)
    kernel = cpu.load_kernel()
    named = f"for {kernel.instructions}" if isinstance(kernel, cpu.Kernel) else kernel
    console.print(f"threads: {torch.get_num_threads()}, clock: {clock}, kernel: {named}")
    shapes = {k: v for k, v in SHAPES.items() if not shape or any(s in k for s in shape)}
    with torch.inference_mode():
        for kind in dtype:
            table = Table(title=f"{pattern}, {kind}: times faster than dense")
            table.add_column("weight")
            for heading in ("tokens", "dense µs"):
                table.add_column(heading, justify="right")
            for heading in ("compiled dense", "compiled packed"):
                table.add_column(heading, justify="right")
            for heading in (*(f"by {name}" for name in cpu.WAYS), "SparseLinear", *CODES):
                table.add_column(heading, justify="right")
            for where, size in shapes.items():
                for count in tokens:
                    case = Case(
                        size,
                        count,
                        getattr(torch, kind),
                        Pattern.parse(pattern),
                        count <= compile_tokens,
                        megabytes,
                    )
                    torch._dynamo.reset()
                    found = seconds_of_rounds(case, rounds, CLOCKS[clock])
                    add_row(table, where, case, found)
            console.print(table)


if __name__ == "__main__":
    main()
