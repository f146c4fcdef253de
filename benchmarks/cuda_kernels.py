"""What the fused kernels for CUDA gain over PyTorch's operations, and what the device allows.

For linears of LLaMA-2-7B: the mask of a weight, and the placement gradient from the weight's
gradient. Times both ways with CUDA events, in turn in one run, and prints medians, bytes and
operations a second beside the device's. The kernels must agree with the operations before they
are timed. ``--counts`` needs no device: it prints bytes and operations as they follow from the
shapes, and the time that these take at the limits of a device.

    python benchmarks/cuda_kernels.py
    python benchmarks/cuda_kernels.py --counts --device H100
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import attrs
import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from permllm.core.block_product import masked_by_operations, masked_in_order
from permllm.core.fused import has_fused_kernels
from permllm.core.patterns import Pattern
from permllm.core.permutations import block_permutation
from permllm.core.placements import (
    mask_gradient,
    placement_gradient_by_operations,
    placement_gradient_of_weight,
)
from permllm.core.precision import upcast

SHAPES = {
    "q, k, v, o": ((4096, 4096), 4),
    "gate, up": ((11008, 4096), 2),
    "down": ((4096, 11008), 1),
}
"""C_out and C_in, and how many of a layer have them."""

LAYERS = 32
MOVERS = 32
"""Channels that a program looks at for its places; for others it finds the N-th highest again."""


@attrs.frozen
class Device:
    """What a GPU can do at most.

    Attributes:
        bandwidth: bytes a second from its memory.
        operations: additions or comparisons of float32 a second; a fused one counts once.
    """

    bandwidth: float
    operations: float


DEVICES = {
    "A100": Device(2.039e12, 9.75e12),
    "H100": Device(3.35e12, 33.5e12),
    "H200": Device(4.8e12, 33.5e12),
}
"""Boards with SXM of 80, 80 and 141 GB, by the data sheets, whose FLOPS count fused ones twice."""


@attrs.frozen
class Count:
    """Bytes to and from memory, and operations."""

    bytes: float
    operations: float

    def __add__(self, other: Count) -> Count:
        return Count(self.bytes + other.bytes, self.operations + other.operations)

    def __mul__(self, times: float) -> Count:
        return Count(self.bytes * times, self.operations * times)

    def milliseconds(self, device: Device) -> float:
        """At the device's limits, reading and computing at the same time."""
        return 1e3 * max(self.bytes / device.bandwidth, self.operations / device.operations)


# --- counts: per entry of a weight, of which each number takes `width` bytes -----------


def ranking(pattern: Pattern) -> int:
    """Two comparisons, an and, an or and an addition for each entry of the group."""
    return 5 * pattern.m


def fused_mask(width: int, pattern: Pattern, block: int) -> Count:
    """Score and weight are read, and the weight is written."""
    return Count(3 * width, ranking(pattern) + 1)


def fused_gradient(width: int, pattern: Pattern, block: int) -> Count:
    """Score, weight and gradient are read; a channel at a place compares, subtracts and adds."""
    tiles = -(-block // MOVERS)
    # Four sums over a group and two choices, after the ranks.
    return Count(3 * width, 3 * block + tiles * (ranking(pattern) + 11))


def mask_by_operations(width: int, pattern: Pattern, block: int) -> Count:
    """Gathers, a comparison and two ranks in bytes for each pair, and the product with the mask."""
    pairs = (pattern.m - 1) / 2
    gathered, compared = 2 * width, pairs * (2 * width + 1 + 3 + 2 + 3)
    stacked, brought_back, product = 2 + 2, 2, 1 + 4 * width
    return Count(gathered + compared + stacked + brought_back + product, pairs * 4 + 1)


def gradient_by_operations(width: int, pattern: Pattern, block: int) -> Count:
    """For each channel of a block: comparison, difference, choice and sum, each through memory."""
    product = 7 * width + 4 * 4  # gathered, widened and multiplied, and the scores widened
    compared, subtracted, chosen, summed = 4 + 1, 4 + 4, 1 + 4 + 4, 4
    return Count(product + block * (compared + subtracted + chosen + summed), 4 * block)


KERNELS = {
    "mask": (fused_mask, mask_by_operations),
    "placement gradient": (fused_gradient, gradient_by_operations),
}


def print_counts(console: Console, name: str, dtype: torch.dtype, of: Pattern, block: int) -> None:
    device = DEVICES[name]
    table = Table(title=f"{of}, blocks of {block}, {dtype}; milliseconds at an {name}'s limits")
    table.add_column("linear")
    table.add_column("kernel")
    for heading in ("GB", "operations / 1e9", "ms", "by operations GB", "ms"):
        table.add_column(heading, justify="right")
    for kernel, (fused, plain) in KERNELS.items():
        counts = [count(dtype.itemsize, of, block) for count in (fused, plain)]
        whole = [Count(0, 0), Count(0, 0)]
        for linear, (shape, number) in SHAPES.items():
            entries = shape[0] * shape[1]
            add_count(table, linear, kernel, [count * entries for count in counts], device)
            whole = [
                total + count * (entries * number * LAYERS)
                for total, count in zip(whole, counts, strict=True)
            ]
        add_count(table, "all of LLaMA-2-7B", kernel, whole, device)
    console.print(table)


def add_count(table: Table, linear: str, kernel: str, counts: list[Count], device: Device) -> None:
    fused, plain = counts
    table.add_row(
        linear,
        kernel,
        f"{fused.bytes / 1e9:.3g}",
        f"{fused.operations / 1e9:.3g}",
        f"{fused.milliseconds(device):.3g}",
        f"{plain.bytes / 1e9:.3g}",
        f"{plain.milliseconds(device):.3g}",
    )


# --- times -----------------------------------------------------------------------------

Work = Callable[[], Tensor]


def works(shape: tuple[int, int], dtype: torch.dtype, of: Pattern, block: int) -> dict[str, Any]:
    """For each kernel what is timed: fused, and by operations."""
    torch.manual_seed(0)
    rows, channels = shape
    weight, gradient = torch.randn(2, channels, rows, device="cuda").to(dtype)
    # No two of a block are equal, of which the operations may lose any.
    scores = torch.rand(channels // block, block, rows, device="cuda").argsort(1).to(dtype)
    scores = scores.flatten(0, 1)
    local = torch.rand(channels // block, block, device="cuda").argsort(-1)
    start = torch.randperm(channels, device="cuda")
    order = block_permutation(local)
    in_blocks = scores.view(*local.shape, rows)

    def by_operations() -> Tensor:
        of_mask = mask_gradient(gradient, weight, start, torch.float32).view(in_blocks.shape)
        return placement_gradient_by_operations(upcast(in_blocks), of_mask, local, of)

    return {
        "mask": (
            lambda: masked_in_order(weight, scores, order, start, of),
            lambda: masked_by_operations(weight, scores, order, start[order], of),
        ),
        "placement gradient": (
            lambda: placement_gradient_of_weight(in_blocks, gradient, weight, start, local, of),
            by_operations,
        ),
    }


def milliseconds(work: Work) -> float:
    event: Any = torch.cuda.Event
    begin, end = (event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def check(kernel: str, fused: Work, plain: Work) -> None:
    """Raises AssertionError where they disagree: masks in a bit, gradients beyond rounding."""
    found, expected = fused(), plain()
    if kernel == "mask":
        assert torch.equal(found, expected), "masks differ"
        return
    off = (found - expected).abs().mean() / expected.abs().mean()
    assert off < 1e-4, f"gradients differ by {off:.1e} of their mean"


def medians(fused: Work, plain: Work, rounds: int) -> tuple[float, float]:
    """Milliseconds of each, in turn; two rounds warm up."""
    pairs = [(milliseconds(fused), milliseconds(plain)) for _ in range(rounds + 2)][2:]
    one, other = zip(*pairs, strict=True)
    return statistics.median(one), statistics.median(other)


def print_times(console: Console, dtype: torch.dtype, of: Pattern, block: int, rounds: int) -> None:
    name = torch.cuda.get_device_name()
    limits = next((device for key, device in DEVICES.items() if key in name), None)
    console.print(f"{name}, torch {torch.__version__}; limits: {limits or 'not known'}")
    table = Table(title=f"{of}, blocks of {block}, {dtype}")
    table.add_column("linear")
    table.add_column("kernel")
    for heading in ("ms", "TB/s", "1e12 operations/s", "of the limits", "by operations ms", "×"):
        table.add_column(heading, justify="right")
    for linear, (shape, _) in SHAPES.items():
        for kernel, (fused, plain) in works(shape, dtype, of, block).items():
            check(kernel, fused, plain)
            ours, theirs = medians(fused, plain, rounds)
            count = KERNELS[kernel][0](dtype.itemsize, of, block) * (shape[0] * shape[1])
            share = f"{count.milliseconds(limits) / ours:.0%}" if limits else "–"
            table.add_row(
                linear,
                kernel,
                f"{ours:.3f}",
                f"{count.bytes / ours / 1e9:.2f}",
                f"{count.operations / ours / 1e9:.2f}",
                share,
                f"{theirs:.3f}",
                f"{theirs / ours:.1f}",
            )
    console.print(table)


@click.command()
@click.option("--counts", is_flag=True, help="only print what follows from the shapes")
@click.option("--device", default="H100", show_default=True, type=click.Choice(list(DEVICES)))
@click.option("--dtype", default="bfloat16", type=click.Choice(["bfloat16", "float16", "float32"]))
@click.option("--pattern", default="2:4", show_default=True)
@click.option("--block", default=64, show_default=True, help="channels of a block")
@click.option("--rounds", default=20, show_default=True, help="repetitions of each measurement")
def main(counts: bool, device: str, dtype: str, pattern: str, block: int, rounds: int) -> None:
    """Time the fused kernels for CUDA, or count what they do."""
    console = Console()
    kind, of = getattr(torch, dtype), Pattern.parse(pattern)
    if counts:
        print_counts(console, device, kind, of, block)
    elif not torch.cuda.is_available() or not has_fused_kernels(torch.device("cuda")):
        console.print("this needs a CUDA device and Triton; --counts does without")
        sys.exit(2)
    else:
        print_times(console, kind, of, block, rounds)


if __name__ == "__main__":
    main()
