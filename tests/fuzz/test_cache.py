"""Entries of a cache: whole, or computed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from permllm.results import Cost
from permllm.runner.caching.memo import Outcome, Stages
from permllm.runner.caching.store import Cache, content_hash

FIGURES = {"perplexity/text": 12.5, "sparsity": 0.5}
KEY = "a" * 64


def test_entries(fuzz: Any, tmp_path: Path) -> None:
    said: list[str] = []
    stages = Stages(Cache(tmp_path / "cache", warn=said.append))
    tensors = {"part": torch.arange(6.0), "b": torch.arange(4)}
    stages.keep("statistics", KEY, Outcome(tensors, Cost(1.5, 7), ({"loss": 1.0}, "a")))
    stages.figures("figures", KEY, lambda: FIGURES, stage="one")
    entries = {kind: stages.entry(kind, KEY) for kind in ("statistics", "figures")}
    kept = {kind: path.read_bytes() for kind, path in entries.items() if path}

    def read(change: Any) -> None:
        kind = ("statistics", "figures")[change.sample % 2]
        path = entries[kind]
        assert path is not None
        if kind == "statistics":
            content = change.weights(kept[kind])
        elif change.structure:
            content = change.text(json.loads(kept[kind]))
        else:
            content = change.raw(kept[kind])
        path.write_bytes(content)
        # As if it had been written so.
        renamed = path
        if change.reseal:
            name = path.name.split(".")
            renamed = path.with_name(f"{name[0]}.{content_hash(path)}.{name[2]}")
            path.rename(renamed)
        try:
            one = stages.tensors("statistics", KEY, lambda log: tensors, stage="one")
            part = stages.part("statistics", KEY, lambda: tensors["part"], 1)
            figures = stages.figures("figures", KEY, lambda: FIGURES, stage="one")
            assert all(isinstance(value, float) for value in figures.values())
            if not change.reseal:
                assert all(one.tensors[name].equal(tensor) for name, tensor in tensors.items())
                assert part.equal(tensors["part"])
                assert figures == FIGURES
        finally:
            for old in path.parent.glob(f"{path.name[:64]}*"):
                old.unlink()
            path.write_bytes(kept[kind])

    fuzz(read, 2000)


def test_on_the_command_line(fuzz: Any, project: Path, say: Callable[..., str]) -> None:
    entries = sorted((project / "out" / "cache").glob("*/*.*"))

    def read(change: Any) -> None:
        path = entries[change.sample % len(entries)]
        kept = path.read_bytes()
        # Not into the file, which a window of the run may be, too.
        path.unlink()
        path.write_bytes(change.raw(kept))
        try:
            said = say("cache", "verify", project / "out", codes=(0, 1))
            assert ("damaged" in said) == (path.read_bytes() != kept)
            say("cache", "list", project / "out")
        finally:
            path.write_bytes(kept)

    fuzz(read, 100, share=0.03)
