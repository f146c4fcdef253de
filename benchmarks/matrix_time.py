"""How long it takes to read a pipeline file with a large matrix: CPU seconds of one core.

    python benchmarks/matrix_time.py
    python benchmarks/matrix_time.py --size 5 --rounds 5

The matrix has three keys with as many values each, an option and the seed of the permutation's
section among them; a study of ``--size 10`` has 1,000 runs, the most that a file may ask for.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import click

from permllm.registry import Registry
from permllm.runs.plan import make_plan

FILE = """\
model: {{source: directory, path: model}}
pattern: "2:4"
calibration: {{sequences: 8, length: 128}}
layers:
  metric: {{name: ria, exponent: 0.5}}
  permutation: {{name: lcp, block: 64}}
  overrides: [{{match: "*.down_proj", pattern: "4:8"}}]
evaluate: [perplexity, {{name: fidelity}}]
export: [masked]
track: {{}}
matrix:
  layers.permutation.passes: {passes}
  calibration.seed: {seeds}
  layers.permutation: [{learners}]
"""


def study(size: int) -> str:
    """A pipeline file with ``size`` ** 3 runs."""
    learners = ", ".join(f"{{name: lcp, block: {2 ** (index + 1)}}}" for index in range(size))
    return FILE.format(passes=list(range(1, size + 1)), seeds=list(range(size)), learners=learners)


def seconds(path: Path, registry: Registry) -> tuple[float, int]:
    """CPU seconds of reading a file once, and its runs."""
    begin = time.process_time()
    plan = make_plan(path, registry, out=path.parent / "out")
    return time.process_time() - begin, len(plan.runs)


@click.command()
@click.option("--size", default=10, show_default=True, help="values of each of the three keys")
@click.option("--rounds", default=3, show_default=True, help="how often the file is read")
def main(size: int, rounds: int) -> None:
    """Print the median of the CPU seconds."""
    registry = Registry.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_text(study(size), encoding="utf-8")
        times = [seconds(path, registry) for _ in range(rounds)]
    median = statistics.median(time for time, _ in times)
    click.echo(f"{times[0][1]} runs: {median:.2f} s of one core, median of {rounds}")


if __name__ == "__main__":
    main()
