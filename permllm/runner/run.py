"""Runs a whole pipeline file: plan, dense model, each cell of the matrix, results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.components import Observer
from permllm.errors import RunFailed
from permllm.evaluators.context import EvaluationContext
from permllm.models.checks import check_tokenizer, check_weights
from permllm.models.decoder import Decoder
from permllm.models.loading import LoadedModel, load
from permllm.observers.events import Events
from permllm.pipeline.matrix import Cell, expand
from permllm.pipeline.reading import dump_yaml, read_pipeline, resolved
from permllm.pipeline.schema import Pipeline
from permllm.registry import Registry
from permllm.report.plots import write_plots
from permllm.report.summary import write_report
from permllm.results import Results, RunResult
from permllm.runner import folder
from permllm.runner.calibration import Sequences, read_sequences, wished_sequences
from permllm.runner.chain import Chain
from permllm.runner.checkpoints import PrunedWindow
from permllm.runner.devices import pick_device, pick_dtype
from permllm.runner.export import ExportContext
from permllm.runner.folder import unique_slugs
from permllm.runner.memory import PeakMemory
from permllm.runner.plan import DENSE, Plan, Run


def make_plan(
    path: Path,
    registry: Registry,
    settings: Sequence[str] = (),
    out: Path | None = None,
    *,
    resume: bool = False,
) -> Plan:
    """Read a pipeline file and lay out its runs; writes nothing.

    Args:
        path: the pipeline file.
        registry: knows the components.
        settings: ``key=value`` that override the file.
        out: the run's folder; a new one under ``runs/``, or with ``resume`` the latest
            unfinished one, where it is None.

    Raises:
        UserError: the file or a setting is wrong.
    """
    pipeline = read_pipeline(path, registry, settings)
    cells = expand(pipeline, registry)
    if out is None:
        find = folder.latest_unfinished if resume else folder.new_folder
        out = find(pipeline.name)
    return plan_of(pipeline, cells, out)


def plan_of(pipeline: Pipeline, cells: Sequence[Cell], out: Path) -> Plan:
    """The plan of a pipeline and the cells of its matrix."""
    names = unique_slugs([DENSE, *(cell.label for cell in cells)])[1:]
    runs = tuple(
        Run(cell.label, cell.pipeline, cell.options, out / "runs" / name, cell.setting, cell.repeat)
        for cell, name in zip(cells, names, strict=True)
    )
    dense = Run(DENSE, pipeline, {}, out / "runs" / DENSE)
    return Plan(pipeline, runs, dense, out)


def run_plan(
    plan: Plan, registry: Registry, observers: Sequence[Observer] = (), *, resume: bool = False
) -> Results:
    """Do all runs of a plan, and write results, report and plots to its folder.

    Args:
        plan: from :func:`make_plan`.
        registry: whose plugins and observers are told how it goes.
        observers: besides those of the pipeline's ``track``.
        resume: go on after the last finished window of an earlier attempt.

    Raises:
        UserError: something of the user's is wrong; nothing was lost.
        RunFailed: a component or the model broke.
    """
    folder.claim(plan.out, resolved(plan.pipeline, registry), resume=resume)
    hook = registry.manager.hook
    with _observed(plan, registry, observers):
        hook.permllm_plan_started(plan=plan)
        session: _Session | None = None
        try:
            session = _Session(plan, registry)
            results = session.results()
            folder.write_json(plan.out / folder.RESULTS, results.to_dict())
            hook.permllm_progress(run=None, stage="drawing the plots", done=0, total=1)
            write_plots(results, plan)
            write_report(results, plan)
            hook.permllm_progress(run=None, stage="drawing the plots", done=1, total=1)
        except BaseException as error:
            hook.permllm_run_failed(run=session and session.current, error=error)
            raise
        hook.permllm_plan_finished(plan=plan, results=results)
    return results


@contextmanager
def _observed(plan: Plan, registry: Registry, observers: Sequence[Observer]) -> Iterator[None]:
    """Register the observers for the block, each once; the event log is always among them."""
    hook = registry.manager.hook

    def warn(message: str) -> None:
        hook.permllm_warning(message=message)

    with ExitStack() as stack:
        for observer in dict.fromkeys((Events(), *observers, *plan.pipeline.track)):
            # To open a tracking store may take seconds; those before it can say so.
            stage = f"opening {observer.name}"
            hook.permllm_progress(run=None, stage=stage, done=0, total=1)
            watcher = observer.watch(plan.out, warn)
            hook.permllm_progress(run=None, stage=stage, done=1, total=1)
            stack.enter_context(registry.observing(observer, watcher))
        yield


class _Session:
    """The state that the runs of a plan share: model, calibration tokens, dense figures."""

    def __init__(self, plan: Plan, registry: Registry) -> None:
        self.plan, self.registry, self.hook = plan, registry, registry.manager.hook
        self.current: Run | None = None
        self.device = pick_device(plan.pipeline.device)
        self.model = self._load()
        self.sequences: dict[Any, Sequences] = {}
        self.learned: dict[Any, tuple[dict[str, Tensor], float]] = {}
        first = self._sequences(plan.runs[0].pipeline) if plan.runs else None
        self.decoder = self._trace(first)
        self.environment = folder.environment(
            model_fingerprint=self.model.fingerprint,
            model=self.model.description,
            calibration_fingerprint=first.fingerprint() if first else "",
            plugins=registry.versions(),
            plugin_files=registry.digests(plan.pipeline.plugins),
        )
        folder.check_same_inputs(plan.out, self.environment)
        folder.write_json(plan.out / folder.ENVIRONMENT, self.environment)

    def results(self) -> Results:
        """Do all runs; each is kept once it is finished."""
        dense = self._once(self.plan.dense, self._dense)
        runs = [
            self._once(run, partial(self._pruned, run=run, dense=dense)) for run in self.plan.runs
        ]
        return Results(self.plan.pipeline.name, str(self.plan.out), (dense, *runs))

    # --- what the runs share -------------------------------------------------------

    def _load(self) -> LoadedModel:
        pipeline = self.plan.pipeline
        self._progress("loading the model", 0, 1)
        model = load(pipeline.model, pick_dtype(pipeline.dtype, self.device))
        check_tokenizer(model.tokenizer, model.model)
        self._progress("loading the model", 1, 1)
        return model

    def _sequences(self, pipeline: Pipeline) -> Sequences:
        """Calibration tokens, read once for runs that want the same."""
        calibration = pipeline.calibration
        learning = wished_sequences(pipeline)
        key = (calibration, learning)
        if key not in self.sequences:
            self._progress("reading the calibration text", 0, 1)
            self.sequences[key] = read_sequences(calibration, self.model.tokenizer, learning)
            found = len(self.sequences[key].learning)
            if found < learning:
                self.hook.permllm_warning(
                    message=f"'{calibration.dataset.label()}' has {found} learning sequences, "
                    f"where {learning} fresh ones are wanted: they are repeated"
                )
            self._progress("reading the calibration text", 1, 1)
        return self.sequences[key]

    def _trace(self, sequences: Sequences | None) -> Decoder:
        self._progress("tracing the model", 0, 1)
        decoder = Decoder.trace(self.model.model, sequences.tokens[:1] if sequences else None)
        check_weights(decoder)
        self._progress("tracing the model", 1, 1)
        reasons: dict[str, list[str]] = {}
        for name, reason in decoder.skipped.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            which = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
            self.hook.permllm_warning(message=f"{which} stay dense: {reason}")
        return decoder

    # --- one run -------------------------------------------------------------------

    def _once(self, run: Run, work: Any) -> RunResult:
        """The run's result from an earlier attempt if it has one, else of doing it now."""
        self.current = run
        self.hook.permllm_run_started(run=run)
        path = run.directory / "result.json"
        if path.exists():
            result = Results.from_dict(json.loads(path.read_text(encoding="utf-8"))).runs[0]
        else:
            result = work()
            whole = Results(self.plan.pipeline.name, str(self.plan.out), (result,))
            folder.write_json(path, whole.to_dict())
        self.hook.permllm_run_finished(run=run, result=result)
        return result

    def _dense(self) -> RunResult:
        with PeakMemory() as peak:
            figures = self._evaluate(self.plan.dense, None, None)
        return RunResult(DENSE, {"sparsity": 0.0} | figures, 0.0, peak.bytes)

    def _pruned(self, run: Run, dense: RunResult) -> RunResult:
        windows = run.directory / "windows"
        with PeakMemory() as peak:
            chain = Chain(
                self.decoder,
                run.pipeline,
                self._sequences(run.pipeline),
                self.device,
                run,
                self.hook,
                windows,
                self.learned,
            )
            pruned = chain.prune()
        figures = overall(pruned) | self._evaluate(run, pruned.weights, windows)
        result = RunResult(
            label=run.label,
            figures=figures,
            seconds=pruned.seconds,
            peak_memory_bytes=peak.bytes,
            layers=pruned.reports,
            options=run.options,
            setting=run.setting,
            repeat=run.repeat,
        )
        return attrs.evolve(result, exports=self._export(run, pruned.weights, result, dense))

    def _evaluate(
        self, run: Run, weights: dict[str, Tensor] | None, saved: Path | None
    ) -> dict[str, float]:
        """The figures of all evaluators, with pruned weights in place where there are some."""
        decoder, pipeline = self.decoder, run.pipeline
        sequences = self._sequences(self.plan.runs[0].pipeline)
        decoder.place(self.device)
        dense = {name: decoder.weight(name) for name in weights or {}}
        context = EvaluationContext(
            device=str(self.device),
            batch_size=pipeline.calibration.batch_size,
            held_out=sequences.tokens[sequences.held_out],
            dense=partial(decoder.substituted, dense) if weights else nullcontext,
            saved=saved,
        )
        figures: dict[str, float] = {}
        with decoder.substituted(weights or {}):
            for evaluator in pipeline.evaluate:
                stage = f"{evaluator.name}, {run.label}"
                here = attrs.evolve(context, progress=partial(self._progress, stage))
                found = evaluator.evaluate(self.model.model, self.model.tokenizer, here)
                for name, value in found.items():
                    if name in figures and figures[name] != value and name != "sparsity":
                        raise RunFailed(f"two evaluators give a figure with the name '{name}'")
                    figures[name] = float(value)
        self.hook.permllm_evaluated(run=run, figures=figures)
        return figures

    def _export(
        self, run: Run, weights: dict[str, Tensor], result: RunResult, dense: RunResult
    ) -> dict[str, str]:
        """Write every export of the run; the folders appear once they are complete."""
        exports = {}
        context = ExportContext(
            model=self.model.model,
            tokenizer=self.model.tokenizer,
            pipeline_yaml=dump_yaml(resolved(run.pipeline, self.registry)),
            label=run.label,
            result=result,
            dense=dense,
            versions=self.environment["versions"],
            model_description=self.model.description,
        )
        with self.decoder.substituted(weights):
            for exporter in run.pipeline.export:
                self._progress(f"export ({exporter.name}), {run.label}", 0, 1)
                final = run.directory / "exports" / exporter.name
                if not final.exists():
                    unfinished = folder.fresh(final.with_name(final.name + ".partial"))
                    exporter.export(context, unfinished)
                    unfinished.rename(final)
                exports[exporter.name] = str(final.relative_to(self.plan.out))
                self._progress(f"export ({exporter.name}), {run.label}", 1, 1)
                self.hook.permllm_exported(run=run, exporter=exporter.name, directory=final)
        return exports

    def _progress(self, stage: str, done: int, total: int) -> None:
        self.hook.permllm_progress(run=self.current, stage=stage, done=done, total=total)


def overall(pruned: PrunedWindow) -> dict[str, float]:
    """Retained score and sparsity over all pruned linears, weighted by their sizes."""
    sizes = torch.tensor([r.shape[0] * r.shape[1] for r in pruned.reports], dtype=torch.float64)

    def mean(values: list[float]) -> float:
        return float((torch.tensor(values, dtype=torch.float64) * sizes).sum() / sizes.sum())

    return {
        "retained": mean([report.retained for report in pruned.reports]),
        "sparsity": mean([report.sparsity for report in pruned.reports]),
    }
