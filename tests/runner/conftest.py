"""A small pipeline on a tiny model: as a file in a temporary folder, and in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import sketched
from ruamel.yaml import YAML

from permllm.contexts.sequences import Sequences
from permllm.models.decoder import Decoder
from permllm.models.residency import Residency
from permllm.pipeline.reading import read_mapping
from permllm.registry import Registry
from permllm.runner.window_loop import WindowLoop
from permllm.runs.plan import Run
from permllm.testing.models import VOCABULARY, save_tiny, tiny_model

TEXT = "the quick brown fox jumps over the lazy dog and runs away from 27 other animals. "


@pytest.fixture(autouse=True)
def sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are not drawn, which took half of the time of these tests; `tests/report` draws."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", sketched)


@pytest.fixture(autouse=True)
def short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """No order need be a good one: `tests/core` and `tests/permutations` search to the end."""
    monkeypatch.setattr("permllm.core.search.BUDGET", 10**7)


@pytest.fixture
def registry() -> Registry:
    return Registry.load()


@pytest.fixture
def write_pipeline(tmp_path: Path) -> Callable[..., Path]:
    """Writes a pipeline file for a tiny model; keywords replace top-level keys."""

    def write(architecture: str = "llama", **changes: Any) -> Path:
        folder = tmp_path / architecture
        if not folder.exists():
            save_tiny(architecture, folder)
        for name in ("train", "test"):
            (tmp_path / f"{name}.txt").write_text((TEXT + name) * 150, encoding="utf-8")
        data = {
            "permllm": 1,
            "name": "tiny",
            "model": {"source": "directory", "path": architecture},
            "pattern": "2:4",
            "calibration": {
                "dataset": {"name": "text", "path": "train.txt"},
                "sequences": 4,
                "length": 32,
                "held_out": 2,
                "batch_size": 2,
            },
            "layers": {
                "permutation": {
                    "name": "lcp",
                    "block": 8,
                    "steps": 3,
                    "batch": 2,
                    # By default it takes most of the time.
                    "start": {"name": "cp", "rounds": 2, "steps": 2},
                }
            },
            "evaluate": [
                {
                    "name": "perplexity",
                    "dataset": {"name": "text", "path": "test.txt"},
                    "length": 32,
                    "max_tokens": 320,
                },
                "fidelity",
                "sparsity",
            ],
            "export": ["masked"],
            "track": {},
        } | changes
        path = tmp_path / "tiny.yaml"
        with path.open("w", encoding="utf-8") as file:
            YAML().dump(data, file)
        return path

    return write


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Counts how often each parameter, by ``id``, is brought to where it computes."""
    counts: Counter[int] = Counter()
    bring = Residency._bring

    def counted(residency: Residency, parameter: torch.nn.Parameter, *copied: Any) -> None:
        counts[id(parameter)] += 1
        bring(residency, parameter, *copied)

    monkeypatch.setattr(Residency, "_bring", counted)
    return counts


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lists the layers that are fetched while another runs, as each begins to be."""
    layers: list[int] = []
    begin = Residency._fetch

    def noted(residency: Residency, layer: torch.nn.Module) -> None:
        begin(residency, layer)
        if residency._ahead is not None:
            layers.append(residency.layers.index(layer))

    monkeypatch.setattr(Residency, "_fetch", noted)
    return layers


@pytest.fixture
def loop_of(registry: Registry) -> Callable[..., WindowLoop]:
    """The loop of a run on a tiny model in memory; keywords are the pipeline's ``layers``."""

    def make(
        *,
        tokens: int = 0,
        stages: Any = None,
        decoder: Decoder | None = None,
        device: str = "cpu",
        **layers: Any,
    ) -> WindowLoop:
        section = {"model": {"source": "directory", "path": "."}, "pattern": "2:4"}
        chosen = {"permutation": "none", "window": 1} | layers
        pipeline = read_mapping(section | {"layers": chosen, "track": {}}, registry)
        generator = torch.Generator().manual_seed(tokens)
        text = torch.randint(VOCABULARY, (6, 12), generator=generator)
        sequences = Sequences(text, 4, torch.arange(4), torch.arange(4, 6), batch_size=3)
        return WindowLoop.of(
            decoder or Decoder.trace(tiny_model("llama")),
            Run("toy", pipeline, {}, Path()),
            sequences,
            torch.empty(0, device=device).device,
            registry.manager.hook,
            stages=stages,
        )

    return make
