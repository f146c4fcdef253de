"""How much retained score the search-based learners win on matrices of uniform numbers.

NVIDIA's benchmark for channel permutations: a 128 × 64 matrix of uniform numbers,
2:4. Efficacy is the gain in retained score over the original order, as a share of the
gain of keeping the top half of each row, which no order can exceed::

    python benchmarks/cp_efficacy.py
    python benchmarks/cp_efficacy.py --seeds 3 --seconds 2
    python benchmarks/cp_efficacy.py --annealing 60000000
    python benchmarks/cp_efficacy.py --real     # matrices of a 7B model's sizes: ten minutes

The goals are a mean of 36 % in 1 s and of 37.5 % in 10 s, and for real sizes more than
the original order and the heuristic allocation retain, within 5 minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import torch
from annealing import anneal
from rich.console import Console
from rich.table import Table
from torch import Tensor

from permllm.core.patterns import Pattern, retained_score
from permllm.core.search import search
from permllm.core.swaps import swap_search

PATTERN = Pattern(2, 4)
GOALS = {1.0: 36.0, 10.0: 37.5}
"""Mean efficacy of cp in percent on 128 × 64 matrices, by the time limit in seconds."""
REAL_SIZES = ((11008, 4096), (4096, 11008))
"""C_out and C_in of the widest linears of a model with seven billion parameters."""
Method = Callable[[Tensor, torch.Generator], Tensor]


def efficacy(scores: Tensor, permutation: Tensor) -> float:
    """The gain of an order in percent of what the top half of each row gains."""
    none = retained_score(scores, PATTERN)
    top = scores.topk(scores.shape[1] // 2, 1).values.sum(dtype=torch.float64)
    return 100 * ((retained_score(scores, PATTERN, permutation) - none) / (top - none)).item()


def methods(seconds: tuple[float, ...], proposals: int) -> dict[str, Method]:
    """What is compared, by its column's heading."""
    found = {
        "cp, heuristic": method(search, refine=False),
        "cp": method(search),
        "greedy": method(swap_search),
        "greedy, 100 escapes": method(swap_search, escapes=100),
    }
    for limit in seconds:
        found[f"cp, {limit:g} s"] = method(search, time_limit=limit)
        found[f"greedy, {limit:g} s"] = method(swap_search, time_limit=limit)
    if proposals:
        found["annealing"] = method(anneal, proposals=proposals)
    return found


def method(find: Callable[..., Tensor], **options: Any) -> Method:
    """A search with its options fixed."""
    return lambda scores, generator: find(scores, PATTERN, generator=generator, **options)


def timed(find: Method, scores: Tensor) -> tuple[float, float]:
    """Efficacy in percent, and seconds."""
    began = time.perf_counter()
    permutation = find(scores, torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - began
    return efficacy(scores, permutation), seconds


def uniform(rows: int, columns: int, seed: int) -> Tensor:
    """``[rows, columns]`` uniform between 0 and 1."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


def compare(
    seeds: int, rows: int, columns: int, seconds: tuple[float, ...], proposals: int
) -> Table:
    """One row per seed, and the mean."""
    compared = methods(seconds, proposals)
    title = f"efficacy % (seconds), {rows} × {columns}, {PATTERN}"
    table = Table("seed", *compared, "best of all", title=title)
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
    best = []
    for seed in range(seeds):
        scores = uniform(rows, columns, seed)
        for name, find in compared.items():
            results[name].append(timed(find, scores))
        best.append(max(found[-1][0] for found in results.values()))
        table.add_row(
            str(seed), *(cell(results[name][-1:]) for name in compared), f"{best[-1]:.2f}"
        )
    table.add_section()
    mean_best = f"{sum(best) / len(best):.2f}"
    table.add_row("mean", *(cell(results[name]) for name in compared), mean_best)
    goals = {f"cp, {limit:g} s": f"{goal:.1f}" for limit, goal in GOALS.items()}
    table.add_row("goal", *(goals.get(name, "") for name in compared))
    return table


def cell(results: list[tuple[float, float]]) -> str:
    """The means of efficacy and seconds."""
    gains, seconds = (sum(values) / len(results) for values in zip(*results, strict=True))
    return f"{gains:.2f} ({seconds:.2f})"


def real_sizes(limit: float) -> Table:
    """The heuristic allocation, and cp with a time limit in seconds, on large matrices."""
    compared = {
        "cp, heuristic": method(search, refine=False),
        f"cp, {limit:g} s": method(search, time_limit=limit),
    }
    table = Table("C_out × C_in", *compared, title=f"efficacy % (seconds), {PATTERN}")
    for rows, columns in REAL_SIZES:
        scores = uniform(rows, columns, seed=0)
        cells = [cell([timed(find, scores)]) for find in compared.values()]
        table.add_row(f"{rows} × {columns}", *cells)
    return table


@click.command()
@click.option("--seeds", default=20, show_default=True, help="how many matrices, seeds from 0")
@click.option("--rows", default=128, show_default=True)
@click.option("--columns", default=64, show_default=True)
@click.option(
    "--seconds",
    multiple=True,
    type=float,
    default=(1.0, 10.0),
    show_default=True,
    help="time limit to try; may be given again",
)
@click.option(
    "--annealing", default=0, metavar="PROPOSALS", help="also anneal with so many random swaps"
)
@click.option("--threads", default=1, show_default=True, help="CPU threads of torch")
@click.option("--real", is_flag=True, help="try matrices of a 7B model's sizes instead")
@click.option("--real-limit", default=270.0, show_default=True, help="time limit with --real")
def main(
    seeds: int,
    rows: int,
    columns: int,
    seconds: tuple[float, ...],
    annealing: int,
    threads: int,
    real: bool,
    real_limit: float,
) -> None:
    """Print efficacy and seconds of cp and greedy on uniform matrices."""
    torch.set_num_threads(threads)
    table = real_sizes(real_limit) if real else compare(seeds, rows, columns, seconds, annealing)
    Console(width=None if Console().is_terminal else 160).print(table)


if __name__ == "__main__":
    main()
