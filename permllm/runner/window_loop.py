"""The chain of stages: window by window, inputs → statistics → importance → permutation
→ pruned weights → inputs of the next window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch

from permllm.contexts.sequences import Sequences
from permllm.contexts.window import Window, cut_windows, span
from permllm.core.statistics import Statistic
from permllm.errors import UserError
from permllm.folding.constraints import Constraints
from permllm.models.decoder import Decoder
from permllm.pipeline.schema import Pipeline
from permllm.results import Cost
from permllm.runner.caching.chain_keys import ChainKeys
from permllm.runner.caching.keys import digest
from permllm.runner.caching.memo import Meter, Stages
from permllm.runner.finished_layers import FinishedLayers
from permllm.runner.learning import Learning
from permllm.runner.placing import place_layers, streams_window
from permllm.runner.pruning import LayerPruning, LinearPruning, ScoredWindow
from permllm.runner.reporting import Reporter
from permllm.runner.room import room_for
from permllm.runner.selection import LinearSettings, needed, pruned_groups, settle
from permllm.runner.statistics import Gathering
from permllm.runner.streams import Streams
from permllm.runs.checkpoints import Checkpoints, checkpoints_path
from permllm.runs.plan import Run
from permllm.runs.windows import (
    PrunedWindow,
    load_window,
    mapped_weights,
    place_window,
    save_window,
    window_path,
)


@attrs.frozen(eq=False)
class WindowLoop:
    """Prunes the windows of a model; make one with :meth:`of`.

    The decoder keeps its dense weights throughout; pruned ones are substituted at
    call time. Every stage's result is taken from the cache where a run before had the same.

    Attributes:
        decoder: the dense model.
        pipeline: what to do.
        device: where the layers of the current window compute.
        directory: where finished windows are kept, or None.
        settings: pattern, metric and pruner of every linear that is pruned.
        sequences: the calibration tokens.
        stages, keys, streams, gathering, learning, pruning, reporter: what the loop goes
            through, in this order.
    """

    decoder: Decoder
    pipeline: Pipeline
    device: torch.device
    directory: Path | None
    settings: dict[str, LinearSettings]
    sequences: Sequences
    stages: Stages
    keys: ChainKeys
    streams: Streams
    gathering: Gathering
    learning: Learning
    pruning: LayerPruning
    reporter: Reporter

    @classmethod
    def of(
        cls,
        decoder: Decoder,
        run: Run,
        sequences: Sequences,
        device: torch.device,
        hook: Any,
        *,
        directory: Path | None = None,
        stages: Stages | None = None,
        constraints: Constraints | None = None,
        settings: dict[str, LinearSettings] | None = None,
    ) -> WindowLoop:
        """The loop of a run.

        Args:
            decoder: the dense model.
            run: what to do, and its name for the observers.
            sequences: the calibration tokens.
            device: where the layers of the current window compute.
            hook: the life-cycle hooks (pluggy's relay).
            directory: where finished windows are kept; nowhere if it is None.
            stages: computes results, or finds them; they are all computed, by this process alone,
                if it is None.
            constraints: what permutations the groups may get; any if it is None.
            settings: of every linear, where not all are as the pipeline says.

        Raises:
            UserError: the pipeline does not fit the model.
        """
        pipeline, stages = run.pipeline, stages or Stages()
        settings = settings or settle(decoder, pipeline)
        layer_of = {name: linear.layer for name, linear in decoder.linears.items()}
        reporter = Reporter(hook, run)
        keys = ChainKeys(stages, pipeline, sequences, settings, layer_of)
        dense = pipeline.layers.inputs == "dense"
        windows = len(cut_windows(len(decoder.layers), pipeline.layers.window))
        streams = Streams(decoder, sequences, device, stages, dense, windows, pipeline.stream)
        gathering = Gathering(decoder, sequences, device, streams, stages, keys, reporter)
        linears = LinearPruning(decoder, settings, device, keys.component)
        return cls(
            decoder,
            pipeline,
            device,
            directory,
            settings,
            sequences,
            stages,
            keys,
            streams,
            gathering,
            Learning(stages, keys, reporter, constraints or Constraints()),
            LayerPruning(decoder, settings, gathering, linears, reporter),
            reporter,
        )

    @property
    def spans(self) -> list[range]:
        """The layers of each window."""
        return cut_windows(len(self.decoder.layers), self.pipeline.layers.window)

    def pruned(self, index: int) -> PrunedWindow:
        """A window, pruned or found; the streams and keys have gone through those before it."""
        layers, hook, run = self.spans[index], self.reporter.hook, self.reporter.run
        names = tuple(self.decoder.layer_names[layer] for layer in layers)
        hook.permllm_window_started(run=run, window=index, windows=len(self.spans), layers=names)
        self.reporter.course.clear()
        key = self.keys.window(layers)
        window = self._begun(index, key) or self.stages.once(
            "windows",
            key,
            partial(self._shared, index, layers, key),
            partial(self._prune_window, index, layers, key),
            stage=f"pruning, {span(layers)}",
        )
        self._checkpoints(index, key).clear()
        hook.permllm_window_finished(
            run=run, window=index, reports=window.reports, seconds=window.cost.seconds
        )
        return window

    def catch_up(self, index: int) -> None:
        """Have the streams reach a window."""
        with self._room("the inputs", self.spans[index]):
            self.streams.catch_up()

    def apart(self, index: int, hook: Any) -> WindowLoop:
        """The loop as this process has it by itself, for one window that sees dense inputs.

        Args:
            index: of the window, which the streams have reached or will by themselves.
            hook: is told how that goes.
        """
        run = self.reporter.run
        assert run is not None  # from :meth:`of`
        reporter = Reporter(hook, run)
        stages = attrs.evolve(
            self.stages,
            world=self.stages.world.apart(),
            on_reuse=reporter.reused,
            on_wait=lambda stage, over: reporter.progress(stage, over, 1),
        )
        own = WindowLoop.of(
            self.decoder,
            run,
            self.sequences,
            self.device,
            hook,
            directory=self.directory,
            stages=stages,
            constraints=self.learning.constraints,
            settings=self.settings,
        )
        # Of windows with dense inputs, keys know how many come before, and no more.
        own.keys.before.extend([None] * index)
        own.streams.follow(self.streams)
        return own

    def window(self, index: int, layers: range) -> Window:
        """The window over some layers as the learner sees it: inputs, statistics, scores."""
        return self._window(index, layers, self.pipeline.layers.permutation.needs)[0].window

    def dense_windows(self, needs: tuple[Statistic, ...]) -> Iterator[Window]:
        """Every window that has linears to prune, the layers before it being dense.

        Args:
            needs: statistics beyond those of the metrics.
        """
        for index, layers in enumerate(self.spans):
            if pruned_groups(self.decoder, self.settings, layers):
                with self._room("the allocation", layers):
                    self.streams.catch_up()
                    self._place(layers)
                    yield self._window(index, layers, needs)[0].window
            self.streams.later(layers, {})

    def warn_if_nothing_moves(self) -> None:
        """Say that all groups keep their order although a learner was asked for."""
        everywhere = range(len(self.decoder.layers))
        groups = pruned_groups(self.decoder, self.settings, everywhere)
        learner = self.pipeline.layers.permutation
        if learner.reorders and groups.keys() <= self.learning.constraints.kept:
            self.reporter.warn(
                f"no order is learned ({learner.name}): no group of this model folds, and "
                "residual: original keeps the order of those that do not"
            )

    def _checkpoints(self, index: int, key: str | None) -> Checkpoints:
        """What is kept of a window that is not finished; other threads may round otherwise."""
        folder = self.directory and checkpoints_path(self.directory, index)
        own = key and digest(key, self.stages.rounding)
        return Checkpoints(folder, own, self.reporter.warn, self.stages.world)

    def _begun(self, index: int, key: str | None) -> PrunedWindow | None:
        """The window from an earlier attempt of this run, if there is one."""
        path = self.directory and window_path(self.directory, index)
        if path is None:
            return None
        return self._found(key, lambda: path if path.exists() else None)

    def _shared(self, index: int, layers: range, key: str | None) -> PrunedWindow | None:
        """The window from another run, if there is one."""
        path = self.directory and window_path(self.directory, index)

        def place(window: PrunedWindow, entry: Path) -> None:
            if path:
                place_window(path, window, entry)

        window = self._found(key, partial(self.stages.entry, "windows", key), place)
        if window is None:
            return None
        self.stages.on_reuse(f"pruning, {span(layers)}", window.cost.seconds)
        # Its course belongs to this run's record as well.
        for made in window.course:
            self.reporter.step(index, made, replayed=True)
        return window

    def _found(
        self,
        key: str | None,
        look: Callable[[], Path | None],
        then: Callable[[PrunedWindow, Path], None] = lambda window, path: None,
    ) -> PrunedWindow | None:
        """The window in a file, if that is this window.

        Args:
            key: of the window.
            look: gives the file; the first process looks for all.
            then: what the first process does with what it has found.
        """
        window: PrunedWindow | None = None

        def readable() -> Path | None:
            nonlocal window
            path = look()
            window = self._readable(path, key) if path else None
            if path and window:
                then(window, path)
            return path if window else None

        found = self.stages.world.agreed(readable)
        if found is None:
            return None
        window = window or self._readable(found, key)
        if window is None:
            raise self.stages.world.blind(found)
        return window

    def _readable(self, path: Path, key: str | None) -> PrunedWindow | None:
        try:
            window = load_window(path)
        except UserError as error:
            self.reporter.warn(f"{error.message}: the window is pruned again")
            return None
        return window if window.key == (key or "") else None

    def _prune_window(self, index: int, layers: range, key: str | None) -> PrunedWindow:
        self.catch_up(index)
        with self._room("the inputs", layers):
            self._place(layers)
        with self._room("the statistics", layers):
            needs = self.pipeline.layers.permutation.needs
            checkpoints = self._checkpoints(index, key)
            scored, before = self._window(index, layers, needs, checkpoints)
        window = scored.window
        finished = FinishedLayers(checkpoints, window.streamed, self.stages.on_reuse)
        learner = self.pipeline.layers.permutation
        with self._room(f"learning the order ({learner.name})", layers):
            outcome = self.learning.within_constraints(learner, window)
        with self._room("pruning", layers), Meter().running() as meter:
            importance = {
                group: window.group_scores(group).sum(0, dtype=torch.float32).cpu()
                for group in window.groups
            }
            weights, reports = self.pruning.prune(scored, outcome.tensors, finished)
        cost = before + outcome.cost + meter.cost + Cost(finished.seconds)
        result = PrunedWindow(
            weights,
            outcome.tensors,
            importance,
            tuple(reports),
            cost,
            key or "",
            torch.get_num_threads(),
            tuple(self.reporter.course),
        )
        if self.directory:
            path = window_path(self.directory, index)

            def keep() -> None:
                entry = self.stages.put("windows", key, partial(save_window, window=result))
                place_window(path, result, entry)

            self.stages.world.agreed(keep)
            self.stages.world.look_for(path)
            # From here on its weights are read where they are wanted.
            return attrs.evolve(result, weights=mapped_weights(path))
        return result

    def _place(self, layers: range) -> None:
        place_layers(self.decoder, self.device, layers, self.pipeline.stream, self.stages.world)

    def _room(self, what: str, layers: range) -> AbstractContextManager[None]:
        return room_for(f"{what}, {span(layers)}", self.pipeline, len(layers))

    def _window(
        self,
        index: int,
        layers: range,
        extra: tuple[Statistic, ...],
        checkpoints: Checkpoints | None = None,
    ) -> tuple[ScoredWindow, Cost]:
        groups = pruned_groups(self.decoder, self.settings, layers)
        used = [self.settings[linear] for group in groups.values() for linear in group.linears]
        metrics = [settings.metric for settings in used]
        pruners = [settings.pruner for settings in used if not settings.pruner.sequential]
        sums, cost = self.gathering.of_window(layers, needed([*metrics, *pruners], extra))
        window = Window(
            index=index,
            layers=layers,
            decoder=self.decoder,
            device=self.device,
            sequences=self.sequences,
            pruned_inputs=self.streams.pruned,
            dense_inputs=self.streams.dense,
            groups=groups,
            patterns={
                name: self.settings[group.linears[0]].pattern for name, group in groups.items()
            },
            tensors=self.pruning.linears.tensors(sums, {}),
            seed=(self.pipeline.seed * 1_000_003 + index) % 2**63,
            pruners={
                linear: self.settings[linear].pruner
                for group in groups.values()
                for linear in group.linears
            },
            # A pruner may train, too.
            on_step=partial(self.learning.step, index, "pruner", span(layers), []),
            on_progress=self.reporter.progress,
            on_warning=self.reporter.warn,
            streamed=streams_window(
                self.decoder, self.device, layers, self.pipeline.stream, self.stages.world
            ),
            world=self.stages.world,
            checkpoints=checkpoints or Checkpoints(),
            keep_states=self.streams.keep,
            find_permutations=lambda learner, window: (
                self.learning.permutations(learner, window).tensors  # type: ignore[arg-type]
            ),
        )
        with Meter().running() as meter:
            scored = self.pruning.linears.scored(window, sums)
        return scored, cost + meter.cost
