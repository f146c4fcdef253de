"""Made-up folders of runs, written as permllm writes them, for tests of what reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from permllm.files import write_json
from permllm.results import DENSE, Cost, LayerReport, Results, RunResult
from permllm.runs import events
from permllm.runs.folder import ENVIRONMENT, PIPELINE, RESULT, RESULTS, unique_slugs
from permllm.runs.windows import PrunedWindow, save_window, window_path

PERPLEXITY = "perplexity/toy"
"""The figure that made-up runs have."""

LINEARS = {
    "self_attn.q_proj": "self_attn.q_proj,self_attn.k_proj",
    "self_attn.k_proj": "self_attn.q_proj,self_attn.k_proj",
    "mlp.down_proj": "mlp.down_proj",
}
"""The linears of every layer, and the permutation group of each."""


@attrs.frozen
class Made:
    """A made-up run.

    Attributes:
        label: its label.
        order: ``"same"`` or ``"random"``.
        perplexity: its figure.
        seconds: its time.
        steps: how many steps it trained.
        error: what broke it.
        result: whether it has one; without, it is unfinished.
        windows: how many of its layers have a window; all if None.
        setting, repeat: as in RunResult.
    """

    label: str
    order: str = "random"
    perplexity: float = 40.0
    seconds: float = 60.0
    steps: int = 0
    error: str | None = None
    result: bool = True
    windows: int | None = None
    setting: str = ""
    repeat: int = 0


QUICKSTART = (
    Made("none", order="same", perplexity=100.0, seconds=2.0),
    Made("cp", perplexity=80.0, seconds=20.0),
    Made("lcp", perplexity=50.0, seconds=300.0, steps=12),
)
"""Three runs that finished, of which one trained."""


def write_study(
    out: Path,
    runs: Sequence[Made] = QUICKSTART,
    *,
    layers: int = 4,
    channels: int = 32,
    finished: bool = True,
    failure: tuple[str | None, str] | None = None,
) -> Results:
    """Write a folder as of a pipeline with one window a layer, whose results are given back.

    Args:
        out: the folder.
        runs: the pruned ones; the dense model's is added.
        layers, channels: of the model.
        finished: whether there is a results.json.
        failure: the run, or None for outside of all, and the error class that ended it.
    """
    generator = torch.Generator().manual_seed(0)
    dense = RunResult(DENSE, {PERPLEXITY: 20.0, "sparsity": 0.0}, 0.0, 2**30)
    results = [dense]
    log = [
        _event("plan_started", None, pipeline="toy", runs=[DENSE, *(made.label for made in runs)])
    ]
    slugs = unique_slugs([DENSE, *(made.label for made in runs)])
    _write_result(out / "runs" / slugs[0], dense)
    for made, slug in zip(runs, slugs[1:], strict=True):
        directory = out / "runs" / slug
        reports = _write_windows(directory, made, layers, channels, generator)
        if made.windows != 0:
            log += [_event("run_started", made.label, options=_options(made))]
        log += _training(made)
        if not made.result:
            continue
        result = _result(made, reports)
        results.append(result)
        _write_result(directory, result)
    if failure:
        log += [_event("run_failed", failure[0], error=failure[1], message="it <broke>")]
    whole = Results("toy", str(out), tuple(results))
    if finished:
        write_json(out / RESULTS, whole.to_dict())
        log += [_event("plan_finished", None, pipeline="toy")]
    (out / PIPELINE).write_text("permllm: 1\nname: toy\npattern: '2:4'\n", encoding="utf-8")
    write_json(
        out / ENVIRONMENT,
        {
            "versions": {"permllm": "0.1.0"},
            "python": "3.11.7",
            "model": "a toy",
            "command": ["a b"],
        },
    )
    lines = "".join(f"{json.dumps(event)}\n" for event in log)
    (out / events.FILE).write_text(lines, encoding="utf-8")
    return whole


def _event(kind: str, run: str | None, **said: Any) -> dict[str, Any]:
    return {"time": "2026-01-31T12:34:56.000+00:00", "event": kind, "run": run, **said}


def _options(made: Made) -> dict[str, Any]:
    return {"layers.permutation": {"name": made.label.split()[0]}}


def _result(made: Made, reports: tuple[LayerReport, ...]) -> RunResult:
    broke = made.error is not None
    figures = {PERPLEXITY: made.perplexity, "retained": 0.8, "sparsity": 0.5}
    return RunResult(
        made.label,
        {} if broke else figures,
        0.0 if broke else made.seconds,
        0 if broke else 2**30,
        exports={} if broke else {"masked": f"runs/{made.label}/exports/masked"},
        layers=() if broke else reports,
        options=_options(made),
        setting=made.setting or made.label,
        repeat=made.repeat,
        error=made.error,
    )


def _write_result(directory: Path, result: RunResult) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / RESULT, Results("toy", "", (result,)).to_dict())


def _write_windows(
    directory: Path, made: Made, layers: int, channels: int, generator: torch.Generator
) -> tuple[LayerReport, ...]:
    found: list[LayerReport] = []
    for layer in range(layers if made.windows is None else made.windows):
        reports = []
        for linear, group in LINEARS.items():
            before, gain, error = torch.rand(3, generator=generator).tolist()
            before, gain = 0.7 + 0.1 * before, 0.05 * gain if made.order != "same" else 0.0
            prefix = f"model.layers.{layer}"
            reports.append(
                LayerReport(
                    f"{prefix}.{linear}",
                    f"{prefix}:{group}",
                    (16, channels),
                    "2:4",
                    before,
                    before + gain,
                    0.5,
                    0.2 * error,
                )
            )
        groups = dict.fromkeys(report.group for report in reports)
        permutations = {
            group: torch.arange(channels)
            if made.order == "same"
            else torch.randperm(channels, generator=generator)
            for group in groups
        }
        importance = {group: torch.rand(channels, generator=generator) ** -1 for group in groups}
        weights = {report.linear: torch.zeros(report.shape) for report in reports}
        window = PrunedWindow(weights, permutations, importance, tuple(reports), Cost(1.0))
        save_window(window_path(directory / "windows", layer), window)
        found += reports
    return tuple(found)


def _training(made: Made) -> Iterator[dict[str, Any]]:
    for step in range(1, made.steps + 1):
        figures = {"loss": 0.3 * math.exp(-step / 5) + 0.1, "temperature": 1.0}
        if step % 4 == 0:
            figures["held_out_loss"] = figures["loss"] + 0.05
        yield _event(
            "training_step", made.label, window=0, step=step, total=made.steps, figures=figures
        )
