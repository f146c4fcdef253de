"""Folders of runs to compare, and plans that reports are written of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from permllm.observers.events import Events
from permllm.pipeline.reading import dump_yaml
from permllm.report.comparable import with_options
from permllm.report.plots import write_plots
from permllm.results import Results
from permllm.testing.observers import toy_plan, watched

PIPELINE: dict[str, Any] = {
    "permllm": 1,
    "pattern": "2:4",
    "dtype": "auto",
    "calibration": {
        "dataset": {"name": "text", "path": "/a.txt"},
        "sequences": 16,
        "length": 256,
        "held_out": 4,
        "batch_size": 4,
        "seed": 0,
    },
    "evaluate": [
        {"name": "perplexity", "dataset": {"name": "python-docs"}, "length": 256, "max_tokens": 64},
        {"name": "perplexity", "dataset": {"name": "text", "path": "/b/wiki.txt"}, "length": 128},
        {"name": "choices", "path": "/b/arc.jsonl", "limit": 100},
    ],
    "matrix": None,
}

ENVIRONMENT: dict[str, Any] = {
    "versions": {"permllm": "0.1.0", "torch": "2.4.0", "transformers": "5.0.0", "numpy": "2.0"},
    "threads": 2,
    "cuda_device": None,
    "model": "SmolLM2",
    "model_fingerprint": "a" * 64,
    "calibration_fingerprint": "c" * 64,
}


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a run's folder; keywords change its pipeline, dotted ones with ``__``."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, results: Results, environment: Any = (), **changes: Any) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(results.to_dict()))
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        (folder / "pipeline.yaml").write_text(dump_yaml(with_options(PIPELINE, dotted)))
        kept = ENVIRONMENT | dict(environment)
        (folder / "environment.json").write_text(json.dumps(kept))

    return write


@pytest.fixture
def plan_of():
    """A plan with the runs of some results, one of them trained."""

    def call(results, out: Path):
        plan = toy_plan(out)
        runs = tuple(
            attrs.evolve(
                plan.runs[0],
                label=run.label,
                setting=run.setting,
                repeat=run.repeat,
                directory=out / "runs" / f"run-{index}",
            )
            for index, run in enumerate(results.runs[1:], start=1)
        )
        hook = watched(Events(), out)
        for step in range(1, 9):
            figures = {"loss": 1 / step, "temperature": 1 - step / 10}
            if step % 4 == 0:
                figures["held_out_loss"] = 1.5 / step
            hook.permllm_training_step(
                run=runs[-1],
                window=0,
                stage="permutation",
                step=step,
                total=8,
                figures=figures,
                replayed=False,
            )
        return attrs.evolve(plan, runs=runs)

    return call


@pytest.fixture
def drawn(results, tmp_path: Path, plan_of):
    made = results()
    plan = plan_of(made, tmp_path)
    return plan, write_plots(made, plan)
