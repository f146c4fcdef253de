"""Which orders fold in each architecture, and what its exports compute.

Prunes a tiny model of every architecture of the test list, with random weights, in orders of
four kinds: any (``free``); such as fold where some do (``foldable``); these, and one for the
whole residual stream (``shared``) or none there (``original``). Says how many groups' orders
are folded and gathered, and how far the logits of `permuted` and `sparse` are from those of
`masked`: the largest difference as a share of the largest logit, and how often the most
likely token is the same. Orders that cannot be stored are refused.

    python benchmarks/architectures.py
    python benchmarks/architectures.py gpt2 mixtral
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import permllm
from permllm.errors import UserError
from permllm.formats.logits import Agreement, compare_logits
from permllm.formats.manifest import read_manifest
from permllm.models.loading import quiet
from permllm.testing.models import ARCHITECTURES, VOCABULARY, save_tiny

KINDS: dict[str, dict[str, Any]] = {
    "free": {},
    "foldable": {"foldable": True},
    "shared": {"foldable": True, "residual": "shared"},
    "original": {"foldable": True, "residual": "original"},
}
"""By kind of order the options of ``layers``."""

TOKENS = (8, 24)
"""Sequences and their length."""


def exports_of(model: Path, layers: Mapping[str, Any], out: Path) -> dict[str, Path]:
    """The folders of a model's exports, pruned with these options of ``layers``."""
    text = out.with_suffix(".txt")
    text.write_text("What is pruned is put in order before.\n" * 40, encoding="utf-8")
    pipeline = {
        "permllm": 1,
        "name": out.name,
        "model": {"source": "directory", "path": str(model)},
        "calibration": {
            "dataset": {"name": "text", "path": str(text)},
            "sequences": 4,
            "length": 16,
            "held_out": 0,
        },
        "pattern": "2:4",
        "layers": {"metric": "wanda", "permutation": "cp", **layers},
        "export": ["masked", "permuted", "sparse"],
        "track": {},
    }
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(pipeline), encoding="utf-8")  # which is YAML, too
    (run,) = permllm.run(file, out=out).runs[1:]
    return {name: out / folder for name, folder in run.exports.items()}


def logits_of(folder: Path, tokens: Tensor) -> Tensor:
    """What an export says."""
    from transformers import AutoModelForCausalLM

    if folder.name == "masked":
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
    else:
        model = permllm.load(folder).model
    with torch.inference_mode():
        logits: Tensor = model(input_ids=tokens).logits
    return logits


def row(exports: Mapping[str, Path], tokens: Tensor) -> list[str]:
    """The cells of one kind of order of one architecture."""
    counts = Counter(group.order for group in read_manifest(exports["permuted"]).groups)
    masked = logits_of(exports["masked"], tokens)
    found: list[Agreement] = [
        compare_logits(masked, logits_of(exports[name], tokens)) for name in ("permuted", "sparse")
    ]
    return [
        str(counts["folded"]),
        str(counts["gathered"]),
        *(f"{agreement.difference:.1e}" for agreement in found),
        f"{min(agreement.argmax for agreement in found):.2%}",
    ]


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(ARCHITECTURES))
def main(names: tuple[str, ...]) -> None:
    """Fold, gather and compare tiny models of every architecture."""
    table = Table(title="2:4, float32, logits against those of the masked export")
    for heading in ("model", "order", "folded", "gathered", "permuted", "sparse", "argmax"):
        table.add_column(
            heading, no_wrap=True, justify="left" if heading in ("model", "order") else "right"
        )
    tokens = torch.arange(TOKENS[0] * TOKENS[1]).reshape(TOKENS) % VOCABULARY
    with tempfile.TemporaryDirectory() as folder:
        for name in names or ARCHITECTURES:
            model = save_tiny(name, Path(folder) / name)
            for kind, layers in KINDS.items():
                out = Path(folder) / f"{name}-{kind}"
                try:
                    cells = row(exports_of(model, layers, out), tokens)
                except UserError:
                    cells = ["refused"]
                table.add_row(name, kind, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
