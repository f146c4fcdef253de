"""Exports a finished run once more, in another format, without pruning again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from permllm.components import Exporter
from permllm.errors import UserError
from permllm.models.checks import check_tokenizer
from permllm.models.decoder import Decoder
from permllm.models.loading import fingerprint, load
from permllm.pipeline.matrix import expand
from permllm.pipeline.reading import dump_yaml, read_pipeline, resolved
from permllm.registry import Registry
from permllm.results import Results, RunResult
from permllm.runner import folder
from permllm.runner.checkpoints import PrunedWindow, load_window, window_path
from permllm.runner.devices import pick_dtype
from permllm.runner.export import ExportContext
from permllm.runner.plan import Plan, Run
from permllm.runner.run import plan_of
from permllm.runner.stages import Cost
from permllm.runner.windows import cut_windows

RESULT = "result.json"
"""What the record of a finished run is called in its folder."""


def export_run(directory: Path, exporter: Exporter, registry: Registry, to: Path) -> None:
    """Write the model that a run pruned in another format.

    The pruned weights and orders are those that the run has kept; the folder appears once
    it is complete.

    Args:
        directory: the folder of one run, such as ``runs/quickstart-1/runs/lcp``.
        exporter: the format.
        registry: knows the components of the run's pipeline.
        to: where to; it must not be there yet.

    Raises:
        UserError: this is no folder of a finished run, its windows are gone, the model has
            changed since, or ``to`` is there already.
        RunFailed: the export is not the pruned model.
    """
    if to.exists():
        raise UserError(f"'{to}' is there already", hint="choose another folder with --to")
    plan, run = _plan_of(directory, registry)
    environment = json.loads((plan.out / folder.ENVIRONMENT).read_text(encoding="utf-8"))
    if fingerprint(run.pipeline.model) != environment["model_fingerprint"]:
        raise UserError(
            f"{run.pipeline.model.describe()} has changed since '{directory}' pruned it",
            hint="run the pipeline again in a new folder",
        )
    # Where it was pruned does not matter: weights come from the run.
    loaded = load(run.pipeline.model, pick_dtype(run.pipeline.dtype, torch.device("cpu")))
    check_tokenizer(loaded.tokenizer, loaded.model)
    decoder = Decoder.trace(loaded.model)
    spans = cut_windows(len(decoder.layers), run.pipeline.layers.window)
    pruned = _pruned(directory, len(spans))
    result, dense = _result(directory), _result(plan.dense.directory)
    context = ExportContext(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        pipeline_yaml=dump_yaml(resolved(run.pipeline, registry)),
        label=run.label,
        result=result,
        dense=dense,
        versions=environment["versions"],
        model_description=loaded.description,
        decoder=decoder,
        perms=pruned.perms,
        patterns=pruned.patterns,
    )
    unfinished = folder.fresh(to.with_name(f"{to.name}.partial"))
    with decoder.substituted(pruned.weights):
        try:
            exporter.export(context, unfinished)
        except BaseException:
            shutil.rmtree(unfinished)
            raise
    unfinished.rename(to)


def _plan_of(directory: Path, registry: Registry) -> tuple[Plan, Run]:
    """The plan that a run's folder belongs to, and the run."""
    directory = directory.absolute()
    out = directory.parent.parent
    if not (directory / RESULT).is_file() or not (out / folder.PIPELINE).is_file():
        raise UserError(
            f"'{directory}' is no folder of a finished run", hint=_finished_beneath(directory)
        )
    pipeline = read_pipeline(out / folder.PIPELINE, registry)
    plan = plan_of(pipeline, expand(pipeline, registry), out)
    for run in plan.runs:
        if run.directory.name == directory.name:
            return plan, run
    raise UserError(
        f"'{directory}' holds no pruned model",
        hint="pruned runs here: " + ", ".join(run.directory.name for run in plan.runs),
    )


def _finished_beneath(directory: Path) -> str:
    finished = sorted(path.parent for path in directory.glob(f"runs/*/{RESULT}"))
    pruned = [str(path) for path in finished if path.name != "dense"]
    return f"name one of its runs: {', '.join(pruned)}" if pruned else "name one run's folder"


def _pruned(directory: Path, windows: int) -> PrunedWindow:
    """All windows of a run as one."""
    weights: dict[str, Any] = {}
    perms: dict[str, Any] = {}
    importance: dict[str, Any] = {}
    reports: list[Any] = []
    for index in range(windows):
        path = window_path(directory / "windows", index)
        if not path.is_file():
            raise UserError(
                f"'{path}' is gone, which holds pruned weights of this run",
                hint="run the pipeline again with --resume; it is pruned anew",
            )
        window = load_window(path)
        weights |= window.weights
        perms |= window.perms
        importance |= window.importance
        reports += window.reports
    return PrunedWindow(weights, perms, importance, tuple(reports), Cost())


def _result(directory: Path) -> RunResult:
    path = directory / RESULT
    if not path.is_file():
        return RunResult(directory.name, {}, 0.0, 0)
    return Results.from_dict(json.loads(path.read_text(encoding="utf-8"))).runs[0]
