"""What a gather at run time costs beside the norm before it and the linear after it.

Times, interleaved in one process, an RMS norm and a linear, without and with a gather of the
channels between them; each as PyTorch runs it call by call, and fused by torch.compile. Prints
the median without a gather, and how many times as long it takes with one (the median of the
rounds' ratios).

    OMP_NUM_THREADS=1 python benchmarks/gather_cost.py
    python benchmarks/gather_cost.py --dtype bfloat16 --device cuda
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

SHAPES = {
    "SmolLM2-135M gate, up": (3072, 576),
    "SmolLM2-135M q, k, v": (960, 576),
    "Llama-7B q, k, v": (12288, 4096),
}
"""C_out and C_in, the linears that share a gather taken together."""


def plain(x: Tensor, scale: Tensor, weight: Tensor, order: Tensor) -> Tensor:
    """Norm and linear: the order is folded."""
    return functional.linear(functional.rms_norm(x, scale.shape, scale), weight)


def gathered(x: Tensor, scale: Tensor, weight: Tensor, order: Tensor) -> Tensor:
    """Norm, gather and linear."""
    normed = functional.rms_norm(x, scale.shape, scale)
    return functional.linear(normed.index_select(-1, order), weight)


def seconds(work: Callable[..., Tensor], operands: tuple[Tensor, ...]) -> float:
    """Of one call."""
    cuda = operands[0].is_cuda
    began = time.perf_counter()
    work(*operands)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


@click.command()
@click.option("--tokens", multiple=True, type=int, default=(1, 16, 256), show_default=True)
@click.option("--dtype", default="float32", type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option("--device", default="cpu", show_default=True)
@click.option("--rounds", default=30, show_default=True, help="repetitions of each measurement")
def main(tokens: tuple[int, ...], dtype: str, device: str, rounds: int) -> None:
    """Time a norm and a linear with a gather between them and without."""
    made = {"dtype": getattr(torch, dtype), "device": device}
    table = Table(title=f"{dtype}, {device}, {torch.get_num_threads()} threads")
    table.add_column("linears")
    for heading in ("tokens", "no gather", "gather", "fused, no gather", "fused, gather"):
        table.add_column(heading, justify="right")
    ways = {"": (plain, gathered), "fused": (torch.compile(plain), torch.compile(gathered))}
    for label, (outputs, inputs) in SHAPES.items():
        scale, weight = torch.rand(inputs, **made), torch.randn(outputs, inputs, **made)
        order = torch.randperm(inputs, device=device)
        for count in tokens:
            operands = (torch.randn(count, inputs, **made), scale, weight, order)
            cells = []
            for pair in ways.values():
                for way in pair:
                    seconds(way, operands)  # compiled, and in the caches
                times = [tuple(seconds(way, operands) for way in pair) for _ in range(rounds)]
                without = statistics.median(first for first, _ in times)
                ratio = statistics.median(second / first for first, second in times)
                cells += [f"{without * 1e6:,.0f} µs", f"{ratio:.2f} x"]
            table.add_row(label, str(count), *cells)
    Console().print(table)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
