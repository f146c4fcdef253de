"""One run of a plan, from its stages to its exports."""

from __future__ import annotations

import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import attrs
import torch

from permllm.components import Evaluator
from permllm.contexts.evaluation import EvaluationContext
from permllm.contexts.export import ExportContext
from permllm.core.digest import tensor_digest
from permllm.core.patterns import Pattern
from permllm.files import completing
from permllm.formats.served import as_served
from permllm.freed_memory import give_back_freed_memory
from permllm.given import Giver, plain_figures
from permllm.models.unchanged import unchanged
from permllm.pipeline.reading import dump_yaml, published, resolved
from permllm.results import DENSE, RunResult
from permllm.runner.all_windows import all_pruned
from permllm.runner.allocating import allocated
from permllm.runner.caching.keys import component_key
from permllm.runner.exporting import export
from permllm.runner.memory import PeakMemory
from permllm.runner.placing import place_layers
from permllm.runner.room import room_for
from permllm.runner.selection import settings_of
from permllm.runner.shared import Shared
from permllm.runner.window_loop import WindowLoop
from permllm.runs import exports
from permllm.runs.plan import Run
from permllm.runs.windows import PrunedWindow


@attrs.frozen(eq=False)
class OneRun:
    """A run of a plan.

    Attributes:
        shared: what all runs share.
        run: what is done.
    """

    shared: Shared
    run: Run

    def depends_on(self) -> list[Any]:
        """Plain data that says what the run's results depend on, beside model and machine.

        Raises:
            Unhashable: a component holds something that cannot be told apart from another's.
        """
        pipeline = self.run.pipeline
        evaluators = component_key(pipeline.evaluate)
        if self.run.label == DENSE:
            compare = any(evaluator.compares for evaluator in pipeline.evaluate)
            return [DENSE, evaluators, self._held_out() if compare else None]
        tokens = self.shared.sequences(self.run)
        parts = (pipeline.pattern, pipeline.layers, pipeline.calibration.batch_size, pipeline.seed)
        return [
            self.run.label,
            component_key(parts),
            [tensor_digest(tokens.tokens), tokens.calibration, len(tokens.held_out)],
            evaluators,
            component_key(pipeline.export),
        ]

    def dense(self) -> RunResult:
        """Evaluate the dense model."""
        with PeakMemory() as peak:
            figures = self._evaluate(None, None, {})
        return RunResult(DENSE, {"sparsity": 0.0} | figures, 0.0, peak.bytes)

    def pruned(self, dense: RunResult, versions: dict[str, str]) -> RunResult:
        """Prune, evaluate and export.

        Args:
            dense: the dense model's figures, for the model cards.
            versions: of permllm, torch and so on, likewise.
        """
        shared, run = self.shared, self.run
        windows = run.directory / "windows"
        sequences = shared.sequences(run)
        constraints = shared.constraints(run.pipeline.layers)
        if self._stores_permutations():
            # Before anything is learned.
            shared.layout.check_storable(filter(constraints.leaves_free, self._pruned_groups()))
        chain = shared.decoder, run, sequences, shared.device, shared.reporter.hook
        settings = allocated(*chain, constraints=constraints, stages=shared.stages)
        loop = WindowLoop.of(
            *chain,
            directory=windows,
            stages=shared.stages,
            constraints=constraints,
            settings=settings,
        )
        pruned = all_pruned(loop)
        own = overall(pruned, shared.decoder.entries)
        figures = own | self._evaluate(pruned, windows, own)
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
        if not run.pipeline.export:
            return result
        context = ExportContext(
            model=shared.model.model,
            tokenizer=shared.model.tokenizer,
            pipeline_yaml=dump_yaml(published(resolved(run.pipeline, shared.registry))),
            label=run.label,
            result=result,
            dense=dense,
            versions=versions,
            model_description=shared.model.description,
            decoder=shared.decoder,
            permutations=pruned.permutations,
            patterns={name: one.pattern for name, one in loop.settings.items()},
            layout=shared.layout,
            dtype=shared.model.saved_dtype if run.pipeline.dtype == "auto" else shared.dtype,
            origin=shared.origin,
            calibration=lambda: sequences,
        )
        exported = self.shared.world.agreed(partial(self._export, pruned, context))
        return attrs.evolve(result, exports=exported)

    def _stores_permutations(self) -> bool:
        stored = any(exporter.stores_orders for exporter in self.run.pipeline.export)
        return stored and self.run.pipeline.layers.permutation.reorders

    def _pruned_groups(self) -> list[str]:
        return [
            name
            for name, group in self.shared.decoder.groups.items()
            if any(settings_of(linear, self.run.pipeline) for linear in group.linears)
        ]

    def _evaluate(
        self, pruned: PrunedWindow | None, saved: Path | None, own: dict[str, float]
    ) -> dict[str, float]:
        """The figures of all evaluators, with pruned weights in place where there are some.

        Args:
            pruned: the weights; the dense model's where it is None.
            saved: the folder of the windows.
            own: the run's own figures.

        Raises:
            GivenWrong: an evaluator gives another value for one of these, or for another's.
        """
        state = DENSE if pruned is None else pruned.key
        stages = self.shared.stages
        surroundings = self._surroundings(pruned, saved)
        figures: dict[str, float] = {}
        for evaluator in self.run.pipeline.evaluate:
            stage = f"{evaluator.name}, {self.run.label}"
            known = bool(state) and evaluator.repeatable
            key = stages.key("figures", partial(self._figures_key, evaluator, state))
            measure = partial(self._measure, evaluator, pruned, surroundings, stage)
            if not evaluator.parallel:
                measure = partial(self.shared.world.agreed, measure)
            measured = stages.figures("figures", key if known else None, measure, stage=stage)
            others = figures | own
            for name in measured.keys() & others.keys():
                if not math.isclose(measured[name], others[name], rel_tol=1e-6, abs_tol=1e-6):
                    whose = "the run's own" if name in own else "another evaluator's"
                    raise Giver("evaluator", evaluator).wrong(
                        f"gives {measured[name]:.6g} as '{name}', which is {whose} figure "
                        f"({others[name]:.6g}); it has to call it otherwise"
                    )
            figures |= measured
        self.shared.reporter.hook.permllm_evaluated(run=self.run, figures=figures)
        return figures

    def _surroundings(self, pruned: PrunedWindow | None, saved: Path | None) -> EvaluationContext:
        """What all evaluators of a model are given alike."""
        context = EvaluationContext(
            device=str(self.shared.device),
            batch_size=self.run.pipeline.calibration.batch_size,
            saved=saved,
            world=self.shared.world,
        )
        if pruned is None:
            return context
        # Its folds are proved once for all evaluators, with the weights that they are given.
        storage = cache(lambda: self.shared.layout.plan(pruned.permutations))
        patterns = {one.linear: Pattern.parse(one.pattern) for one in pruned.reports}
        return attrs.evolve(
            context, packed=partial(as_served, self.shared.decoder, storage, patterns)
        )

    def _figures_key(self, evaluator: Evaluator, state: str) -> list[Any]:
        held_out = self._held_out() if evaluator.compares else None
        batch_size = self.run.pipeline.calibration.batch_size
        return [component_key(evaluator), state, batch_size, held_out]

    def _held_out(self) -> str:
        sequences = self.shared.sequences(self.run)
        return tensor_digest(sequences.tokens[sequences.held_out])

    def _measure(
        self,
        evaluator: Evaluator,
        pruned: PrunedWindow | None,
        surroundings: EvaluationContext,
        stage: str,
    ) -> dict[str, float]:
        decoder, loaded = self.shared.decoder, self.shared.model
        weights = pruned.weights if pruned else {}
        if evaluator.needs_model:
            stream = self.run.pipeline.stream
            place_layers(decoder, self.shared.device, None, stream, self.shared.world)
        else:
            decoder.place("cpu", ())
        progress = partial(self.shared.reporter.progress, stage)
        context = attrs.evolve(surroundings, progress=progress)
        if evaluator.compares:
            sequences = self.shared.sequences(self.run)
            context = attrs.evolve(
                context,
                held_out=sequences.tokens[sequences.held_out],
                dense=decoder.dense,
            )
        room = room_for(stage, self.run.pipeline)
        giver = Giver("evaluator", evaluator)
        with room, decoder.substituted(weights), unchanged(loaded.model, giver), decoder.streamed():
            measured = evaluator.evaluate(loaded.model, loaded.tokenizer, context)
        return plain_figures(measured, giver)

    def _export(self, pruned: PrunedWindow, context: ExportContext) -> dict[str, str]:
        """Write every export of the run; the folders appear once they are complete."""
        run, reporter = self.run, self.shared.reporter
        places = {}
        # What an export holds and is checked by are weights and logits on the CPU.
        self.shared.decoder.place("cpu", ())
        # What learning left between its tensors is room for copies of layers.
        give_back_freed_memory()
        with self.shared.decoder.substituted(pruned.weights):
            for exporter in run.pipeline.export:
                stage = f"export ({exporter.name}), {run.label}"
                reporter.progress(stage, 0, 1)
                final = run.directory / exports.FOLDER / exporter.name
                if not exports.is_whole(run.directory, exporter.name, reporter.warn):
                    with completing(final) as unfinished:
                        export(exporter, context, unfinished)
                        exports.note(run.directory, exporter.name, unfinished)
                places[exporter.name] = str(final.relative_to(self.shared.plan.out))
                reporter.progress(stage, 1, 1)
                reporter.hook.permllm_exported(run=run, exporter=exporter.name, directory=final)
        return places


def overall(pruned: PrunedWindow, entries: int) -> dict[str, float]:
    """Retained score, weighted by sizes, and the share of zeros in all decoder matrices.

    Where some of these stay dense, their share is a figure, too.

    Args:
        pruned: all windows.
        entries: how many numbers the matrices of the decoder layers hold.
    """
    sizes = torch.tensor([r.shape[0] * r.shape[1] for r in pruned.reports], dtype=torch.float64)

    def total(values: list[float]) -> float:
        return float((torch.tensor(values, dtype=torch.float64) * sizes).sum())

    size = int(sizes.sum())
    retained = total([report.retained for report in pruned.reports]) / size
    zeros = total([report.sparsity for report in pruned.reports])
    dense = {"left_dense": 1 - size / entries} if size < entries else {}
    return {"retained": retained, "sparsity": zeros / entries} | dense
