"""The state that the runs of a plan share, and each run from its stages to its exports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.components import Evaluator
from permllm.errors import PermllmError, RunFailed
from permllm.evaluators.context import EvaluationContext
from permllm.models.checks import check_tokenizer, check_weights
from permllm.models.decoder import Decoder
from permllm.models.loading import LoadedModel, fingerprint, load, load_tokenizer
from permllm.permutations.none import NoPermutation
from permllm.pipeline.reading import dump_yaml, resolved
from permllm.pipeline.schema import Calibration, Pipeline
from permllm.registry import Registry
from permllm.results import Results, RunResult
from permllm.runner import folder
from permllm.runner.cache import Cache
from permllm.runner.calibration import Sequences, read_sequences, wished_sequences
from permllm.runner.chain import Chain
from permllm.runner.checkpoints import PrunedWindow
from permllm.runner.constrained import Constraints
from permllm.runner.devices import pick_device, pick_dtype
from permllm.runner.export import ExportContext
from permllm.runner.keys import component_key, digest, machine, own_code, tensor_digest
from permllm.runner.memory import PeakMemory
from permllm.runner.plan import DENSE, Plan, Run
from permllm.runner.settings import settings_of
from permllm.runner.stages import Stages
from permllm.saved.placing import check_placeable

STATE = "state.json"
"""Says which run the folder of a run belongs to."""


class Session:
    """What the runs of a plan share: the model, calibration tokens and kept results.

    Model and decoder are loaded when the first of them is needed: where every result is
    there already, none is.
    """

    def __init__(self, plan: Plan, registry: Registry, cache: Cache) -> None:
        self.plan, self.registry, self.hook = plan, registry, registry.manager.hook
        self.current: Run | None = None
        pipeline = plan.pipeline
        self.device = pick_device(pipeline.device)
        self.dtype = pick_dtype(pipeline.dtype, self.device)
        self._progress("looking at the model", 0, 1)
        self.fingerprint = fingerprint(pipeline.model)
        self._progress("looking at the model", 1, 1)
        base = digest(self.fingerprint, machine(self.device, self.dtype), own_code())
        self.stages = Stages(cache, base, self._found)
        self.read: dict[Any, Sequences] = {}
        # Without options there is nothing to look for.
        self.found_constraints = {(False, "free"): Constraints()}
        if plan.runs:
            # Before anything long: the text may be too short.
            self.sequences(plan.dense)
        self.environment = folder.environment(
            model_fingerprint=self.fingerprint,
            model=pipeline.model.describe(),
            calibration_fingerprint=pipeline.calibration.dataset.fingerprint("train"),
            plugins=registry.versions(),
            plugin_files=registry.digests(plan.pipeline.plugins),
        )
        folder.check_same_inputs(plan.out, self.environment)
        folder.write_json(plan.out / folder.ENVIRONMENT, self.environment)

    def results(self) -> Results:
        """Do all runs; each is kept once it is finished, and marked if it failed."""
        dense = self._once(self.plan.dense, self._dense)
        runs, errors = [], []
        for run in self.plan.runs:
            try:
                runs.append(self._once(run, partial(self._pruned, run=run, dense=dense)))
            except OSError:
                # A full disk, say: it would be the same for every other run.
                raise
            except Exception as error:
                # Components are anybody's code, and the other runs are worth having.
                errors.append(error)
                if len(errors) == len(self.plan.runs):
                    raise
                self.hook.permllm_run_failed(run=run, error=error)
                runs.append(_failed(run, error))
        self.current = None
        return Results(self.plan.pipeline.name, str(self.plan.out), (dense, *runs))

    # --- what the runs share -------------------------------------------------------

    @cached_property
    def model(self) -> LoadedModel:
        """The dense model and its tokenizer."""
        self._progress("loading the model", 0, 1)
        model = load(self.plan.pipeline.model, self.dtype, self.tokenizer)
        check_tokenizer(model.tokenizer, model.model)
        self._progress("loading the model", 1, 1)
        return model

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(self.plan.pipeline.model)

    @cached_property
    def decoder(self) -> Decoder:
        """The dense model as a chain of layers."""
        model = self.model.model
        probe = self.sequences(self.plan.dense).tokens[:1] if self.plan.runs else None
        self._progress("tracing the model", 0, 1)
        decoder = Decoder.trace(model, probe)
        check_weights(decoder)
        self._progress("tracing the model", 1, 1)
        reasons: dict[str, list[str]] = {}
        for name, reason in decoder.skipped.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            which = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
            self.hook.permllm_warning(message=f"{which} stay dense: {reason}")
        return decoder

    def constraints(self, run: Run) -> Constraints:
        """What orders the model's groups may get in a run."""
        layers = run.pipeline.layers
        wanted = layers.foldable, layers.residual
        if wanted not in self.found_constraints:
            stage = "looking for orders that fold"
            self._progress(stage, 0, 1)
            self.found_constraints[wanted] = Constraints.of(
                self.decoder, foldable=layers.foldable, residual=layers.residual
            )
            self._progress(stage, 1, 1)
        return self.found_constraints[wanted]

    def sequences(self, run: Run) -> Sequences:
        """A run's calibration tokens, read once for runs that want the same.

        The dense model's are those of the first run.
        """
        pipeline = (self.plan.runs[0] if run is self.plan.dense else run).pipeline
        calibration, learning = pipeline.calibration, wished_sequences(pipeline)
        if (calibration, learning) not in self.read:
            self.read[calibration, learning] = self._sequences(calibration, learning)
        return self.read[calibration, learning]

    def _sequences(self, calibration: Calibration, learning: int) -> Sequences:
        stage = "reading the calibration text"

        def make(log: list[Any]) -> dict[str, Tensor]:
            self._progress(stage, 0, 1)
            found = read_sequences(calibration, self.tokenizer, learning)
            self._progress(stage, 1, 1)
            return {"tokens": found.tokens}

        key = self.stages.key("tokens", lambda: [component_key(calibration, "train"), learning])
        tokens = self.stages.tensors("tokens", key, make, said=stage).tensors["tokens"]
        found = Sequences.of(calibration, tokens)
        if len(found.learning) < learning:
            self.hook.permllm_warning(
                message=f"'{calibration.dataset.label()}' has {len(found.learning)} learning "
                f"sequences, and up to {learning} may be wanted: they are repeated after that"
            )
        return found

    def _found(self, stage: str, seconds: float) -> None:
        self.hook.permllm_stage_reused(run=self.current, stage=stage, seconds=seconds)

    # --- one run -------------------------------------------------------------------

    def _once(self, run: Run, work: Callable[[], RunResult]) -> RunResult:
        """The run's result from an earlier attempt if it has one, else of doing it now."""
        self.current = run
        self.hook.permllm_run_started(run=run)
        key = self.key_of(run) or ""
        state, path = run.directory / STATE, run.directory / "result.json"
        if _key_in(state) not in (None, key):
            # The folder's name stood for another run, or the code has changed since.
            shutil.rmtree(run.directory)
        if path.exists():
            result = Results.from_dict(json.loads(path.read_text(encoding="utf-8"))).runs[0]
        else:
            folder.write_json(state, {"key": key})
            result = work()
            whole = Results(self.plan.pipeline.name, str(self.plan.out), (result,))
            folder.write_json(path, whole.to_dict())
        self.hook.permllm_run_finished(run=run, result=result)
        return result

    def key_of(self, run: Run) -> str | None:
        """The hash of all that a run's results depend on; None where that cannot be told."""
        return self.stages.key("run", partial(self._depends_on, run))

    def _depends_on(self, run: Run) -> list[Any]:
        pipeline = run.pipeline
        evaluators = component_key(pipeline.evaluate)
        if run.label == DENSE:
            return [DENSE, evaluators, self._held_out(run) if _compare(pipeline) else None]
        tokens = self.sequences(run)
        parts = (pipeline.pattern, pipeline.layers, pipeline.calibration.batch_size, pipeline.seed)
        return [
            run.label,
            component_key(parts),
            [tensor_digest(tokens.tokens), tokens.calibration, len(tokens.held_out)],
            evaluators,
            component_key(pipeline.export),
        ]

    def _dense(self) -> RunResult:
        with PeakMemory() as peak:
            figures = self._evaluate(self.plan.dense, None, None)
        return RunResult(DENSE, {"sparsity": 0.0} | figures, 0.0, peak.bytes)

    def _pruned(self, run: Run, dense: RunResult) -> RunResult:
        windows = run.directory / "windows"
        sequences = self.sequences(run)
        constraints = self.constraints(run)
        self._check_placeable(run.pipeline, constraints)
        pruned = Chain(
            self.decoder,
            run.pipeline,
            sequences,
            self.device,
            run,
            self.hook,
            windows,
            self.stages,
            constraints,
        ).prune()
        figures = overall(pruned) | self._evaluate(run, pruned, windows)
        result = RunResult(
            label=run.label,
            figures=figures,
            seconds=pruned.cost.seconds,
            peak_memory_bytes=pruned.cost.peak_memory_bytes,
            layers=pruned.reports,
            options=run.options,
            setting=run.setting,
            repeat=run.repeat,
        )
        return attrs.evolve(result, exports=self._export(run, pruned, result, dense))

    def _check_placeable(self, pipeline: Pipeline, constraints: Constraints) -> None:
        """Refuse orders that an exporter could not store, before they are learned."""
        stored = any(exporter.stores_orders for exporter in pipeline.export)
        if not stored or pipeline.layers.permutation.name == NoPermutation.name:
            return
        pruned = (
            name
            for name, group in self.decoder.groups.items()
            if any(settings_of(linear, pipeline) for linear in group.linears)
        )
        check_placeable(self.decoder, filter(constraints.leaves_free, pruned))

    def _evaluate(
        self, run: Run, pruned: PrunedWindow | None, saved: Path | None
    ) -> dict[str, float]:
        """The figures of all evaluators, with pruned weights in place where there are some."""
        state = DENSE if pruned is None else pruned.key
        figures: dict[str, float] = {}
        for evaluator in run.pipeline.evaluate:
            stage = f"{evaluator.name}, {run.label}"
            known = bool(state) and evaluator.repeatable
            key = self.stages.key("figures", partial(self._figures_of, run, evaluator, state))
            measure = partial(self._measure, run, evaluator, pruned, saved, stage)
            found = self.stages.figures("figures", key if known else None, measure, said=stage)
            for name, value in found.items():
                if name in figures and figures[name] != value and name != "sparsity":
                    raise RunFailed(f"two evaluators give a figure with the name '{name}'")
                figures[name] = float(value)
        self.hook.permllm_evaluated(run=run, figures=figures)
        return figures

    def _figures_of(self, run: Run, evaluator: Evaluator, state: str) -> list[Any]:
        batch_size = run.pipeline.calibration.batch_size
        held_out = self._held_out(run) if evaluator.compares else None
        return [component_key(evaluator), state, batch_size, held_out]

    def _held_out(self, run: Run) -> str:
        sequences = self.sequences(run)
        return tensor_digest(sequences.tokens[sequences.held_out])

    def _measure(
        self,
        run: Run,
        evaluator: Evaluator,
        pruned: PrunedWindow | None,
        saved: Path | None,
        stage: str,
    ) -> dict[str, float]:
        weights = pruned.weights if pruned else {}
        self.decoder.place(self.device)
        context = EvaluationContext(
            device=str(self.device),
            batch_size=run.pipeline.calibration.batch_size,
            saved=saved,
            progress=partial(self._progress, stage),
        )
        if evaluator.compares:
            sequences = self.sequences(run)
            unpruned = {name: self.decoder.weight(name) for name in weights}
            context = attrs.evolve(
                context,
                held_out=sequences.tokens[sequences.held_out],
                dense=partial(self.decoder.substituted, unpruned) if weights else nullcontext,
            )
        with self.decoder.substituted(weights):
            return evaluator.evaluate(self.model.model, self.model.tokenizer, context)

    def _export(
        self, run: Run, pruned: PrunedWindow, result: RunResult, dense: RunResult
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
            decoder=self.decoder,
            perms=pruned.perms,
            patterns=pruned.patterns,
        )
        with self.decoder.substituted(pruned.weights):
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


def _compare(pipeline: Pipeline) -> bool:
    return any(evaluator.compares for evaluator in pipeline.evaluate)


def _failed(run: Run, error: Exception) -> RunResult:
    """The entry of a run that broke."""
    first = str(error).strip().partition("\n")[0]
    said = first if isinstance(error, PermllmError) else f"{type(error).__name__}: {first}"
    return RunResult(
        label=run.label,
        figures={},
        seconds=0.0,
        peak_memory_bytes=0,
        options=run.options,
        setting=run.setting,
        repeat=run.repeat,
        error=said,
    )


def _key_in(state: Path) -> str | None:
    """The key of the run whose folder this is; None in a new folder."""
    if not state.exists():
        return None
    return str(json.loads(state.read_text(encoding="utf-8"))["key"])
