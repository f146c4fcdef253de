"""Exports a finished run once more, in another format, without pruning again."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import Any

import torch

from permllm.components import Exporter
from permllm.contexts.export import ExportContext
from permllm.contexts.sequences import Sequences
from permllm.contexts.window import cut_windows
from permllm.errors import UserError
from permllm.files import completing, sweep
from permllm.folding.layout import Layout
from permllm.given import Giver
from permllm.models.devices import pick_dtype
from permllm.models.fingerprint import fingerprint
from permllm.models.loading import load
from permllm.models.origin import origin_of
from permllm.models.unchanged import unchanged
from permllm.pipeline.reading import dump_yaml, published, read_study, resolved
from permllm.registry import Registry
from permllm.results import DENSE, RunResult
from permllm.runner.calibration import read_sequences, wished_sequences
from permllm.runner.opening import open_decoder
from permllm.runner.selection import settle
from permllm.runs import folder, plugin_files
from permllm.runs.plan import Plan, Run, plan_of
from permllm.runs.records import read_results
from permllm.runs.windows import PrunedWindow, joined, load_window, window_path


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
        UserError: this is no folder of a finished run, its windows are gone, the model or a
            plugin file has changed since, or ``to`` is there already.
        RunFailed: the export is not the pruned model.
    """
    # What one left that was killed when all was done but this.
    sweep(to.parent)
    if to.exists():
        raise _there_already(to)
    plan, run = _plan_of(directory, registry)
    began = folder.began_with(plan.out)
    if began.model_fingerprint is None:
        raise UserError(
            f"'{plan.out / folder.ENVIRONMENT}' does not say what model was pruned",
            hint=f"it is written again by: {folder.going_on(plan.out)}",
        )
    if fingerprint(run.pipeline.model) != began.model_fingerprint:
        raise UserError(
            f"{run.pipeline.model.describe()} has changed since '{directory}' pruned it",
            hint="run the pipeline again in a new folder",
        )
    # Where it was pruned does not matter: weights come from the run.
    dtype = pick_dtype(run.pipeline.dtype, torch.device("cpu"))
    loaded = load(run.pipeline.model, dtype, as_saved=True)
    decoder = open_decoder(loaded.model, loaded.tokenizer, dtype=dtype)
    spans = cut_windows(len(decoder.layers), run.pipeline.layers.window)
    pruned = _pruned(directory, len(spans))
    context = ExportContext(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        pipeline_yaml=dump_yaml(published(resolved(run.pipeline, registry))),
        label=run.label,
        result=_result(directory),
        dense=_result(plan.dense.directory),
        versions=began.versions,
        model_description=loaded.description,
        decoder=decoder,
        permutations=pruned.permutations,
        patterns={name: one.pattern for name, one in settle(decoder, run.pipeline).items()},
        layout=Layout(decoder),
        dtype=loaded.saved_dtype if run.pipeline.dtype == "auto" else dtype,
        origin=origin_of(run.pipeline.model),
        calibration=partial(_sequences, run, loaded.tokenizer),
    )
    with decoder.substituted(pruned.weights):
        try:
            with completing(to) as unfinished:
                export(exporter, context, unfinished)
        except FileExistsError as error:
            raise _there_already(to) from error
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise _there_already(to) from error
            raise


def export(exporter: Exporter, context: ExportContext, directory: Path) -> None:
    """Write a model to an empty folder, and look whether anything was written.

    Raises:
        GivenWrong: the exporter wrote no file, or changed the model.
    """
    giver = Giver("exporter", exporter)
    with unchanged(context.model, giver):
        exporter.export(context, directory)
    if not any(path.is_file() for path in directory.rglob("*")):
        raise giver.wrong("wrote no file into the folder that it was given")


def _there_already(to: Path) -> UserError:
    return UserError(f"'{to}' is there already", hint="choose another folder with --to")


def _plan_of(directory: Path, registry: Registry) -> tuple[Plan, Run]:
    """The plan that a run's folder belongs to, and the run."""
    directory = directory.absolute()
    out = directory.parent.parent
    there = (directory / folder.RESULT, out / folder.PIPELINE, out / folder.ENVIRONMENT)
    if not all(path.is_file() for path in there):
        raise UserError(
            f"'{directory}' is no folder of a finished run", hint=_finished_beneath(directory)
        )
    # No plugin file runs that is another than the one that pruned.
    recorded = partial(plugin_files.recorded, out)
    plan = plan_of(read_study(out / folder.PIPELINE, registry, recorded=recorded), out)
    for run in plan.runs:
        if run.directory.name == directory.name:
            return plan, run
    raise UserError(
        f"'{directory}' holds no pruned model",
        hint="pruned runs here: " + ", ".join(run.directory.name for run in plan.runs),
    )


def _finished_beneath(directory: Path) -> str:
    pruned = [str(path) for path in folder.finished_runs(directory) if path.name != DENSE]
    return f"name one of its runs: {', '.join(pruned)}" if pruned else "name one run's folder"


def _pruned(directory: Path, windows: int) -> PrunedWindow:
    """All windows of a run as one."""
    paths = [window_path(directory / "windows", index) for index in range(windows)]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"'{path}' is gone, which holds pruned weights of this run",
                hint=folder.pruned_anew(directory),
            )
    return joined([load_window(path) for path in paths])


def _sequences(run: Run, tokenizer: Any) -> Sequences:
    """The calibration text of a run, read again.

    Raises:
        UserError: it is gone.
    """
    return read_sequences(run.pipeline.calibration, tokenizer, wished_sequences(run.pipeline))


def _result(directory: Path) -> RunResult:
    path = directory / folder.RESULT
    if not path.is_file():
        return RunResult(directory.name, {}, 0.0, 0)
    return read_results(path, older=True).runs[0]
