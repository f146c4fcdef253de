"""What 2:4 gains on CUDA: PyTorch's semi-structured linears against dense ones.

Times linears of 4096 × 4096 and 4096 × 11008 for 1 to 4096 tokens with CUDA events, the two
in turn, each with several copies of its weight so that the cache holds none. Prints medians
and the median of the rounds' ratios. Without CUDA, or where nothing multiplies 2:4, it says
so and ends. The times include the launch of each product, as in a model that runs eagerly.

    python benchmarks/cuda_linear.py
    python benchmarks/cuda_linear.py --dtype float16 --tokens 2048
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from permllm.core.patterns import Pattern, nm_mask
from permllm.sparse import cuda

SHAPES = {"q, k, v, o": (4096, 4096), "gate, up": (11008, 4096), "down": (4096, 11008)}
"""C_out and C_in."""

PATTERN = Pattern(2, 4)
TOLERANCE = 2e-2
CACHE_BYTES = 256 << 20
"""More than the caches of any GPU hold."""


def milliseconds(linears: Sequence[nn.Linear], x: Tensor) -> float:
    """Of one product, over all the linears once."""
    event: Any = torch.cuda.Event
    begin, end = (event(enable_timing=True) for _ in range(2))
    begin.record()
    for linear in linears:
        linear(x)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / len(linears)


def bare_linear(weight: Tensor) -> nn.Linear:
    """A linear of this weight, without bias and gradients."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def build(
    shape: tuple[int, int], dtype: torch.dtype, device: cuda.Device
) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """Dense linears with a 2:4 weight, and the same semi-structured."""
    torch.manual_seed(0)
    size = shape[0] * shape[1] * dtype.itemsize
    copies = -(-CACHE_BYTES // (size // 2))
    weight = torch.randn(shape, device="cuda") / shape[1] ** 0.5
    weight = weight.mul_(nm_mask(weight.abs(), PATTERN)).to(dtype)
    dense, sparse = ([bare_linear(weight.clone()) for _ in range(copies)] for _ in range(2))
    for linear in sparse:
        cuda.make_semi_structured(linear, device)
    return dense, sparse


def compare(
    dense: Sequence[nn.Linear], sparse: Sequence[nn.Linear], x: Tensor, rounds: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of each, round by round; raises AssertionError where they disagree."""
    expected = dense[0](x).float()
    worst = (sparse[0](x).float() - expected).abs().max() / expected.abs().max()
    assert worst <= TOLERANCE, f"semi-structured differs from dense by {worst:.1e}"
    pairs = []
    # The first two rounds warm up.
    for count in range(rounds + 2):
        if count % 2:
            later = milliseconds(sparse, x)
            pairs.append((milliseconds(dense, x), later))
        else:
            pairs.append((milliseconds(dense, x), milliseconds(sparse, x)))
    return [pair[0] for pair in pairs[2:]], [pair[1] for pair in pairs[2:]]


def reason_to_skip(dtype: torch.dtype) -> str | None:
    """Why there is nothing to time on this machine, or None."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    device = cuda.Device.of(torch.device("cuda"))
    reasons = [
        cuda.semi_structured_reason(shape, dtype, PATTERN, device) for shape in SHAPES.values()
    ]
    return next((reason for reason in reasons if reason is not None), None)


@click.command()
@click.option("--rounds", default=20, show_default=True, help="repetitions of each measurement")
@click.option("--dtype", default="bfloat16", type=click.Choice(["bfloat16", "float16"]))
@click.option(
    "--tokens",
    multiple=True,
    type=int,
    default=tuple(2**i for i in range(13)),
    help="rows of the input; 1, 2, 4 to 4096 without",
)
def main(rounds: int, dtype: str, tokens: tuple[int, ...]) -> None:
    """Time semi-structured 2:4 linears against dense ones on CUDA."""
    console = Console()
    kind: torch.dtype = getattr(torch, dtype)
    if (reason := reason_to_skip(kind)) is not None:
        console.print(f"skipped: {reason}")
        return
    device = cuda.Device.of(torch.device("cuda"))
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {device.library}")
    table = Table(title=f"2:4, {dtype}")
    table.add_column("weight")
    for heading in ("tokens", "dense ms", "sparse ms", "times faster"):
        table.add_column(heading, justify="right")
    with torch.inference_mode():
        for name, shape in SHAPES.items():
            dense, sparse = build(shape, kind, device)
            for count in tokens:
                x = torch.randn(count, shape[1], device="cuda", dtype=kind)
                plain, packed = compare(dense, sparse, x, rounds)
                ratio = statistics.median(a / b for a, b in zip(plain, packed, strict=True))
                medians = [f"{statistics.median(times):.4f}" for times in (plain, packed)]
                where = f"{name}, {shape[0]} × {shape[1]}"
                table.add_row(where, str(count), *medians, f"{ratio:.2f}")
            del dense, sparse
    console.print(table)


if __name__ == "__main__":
    main()
