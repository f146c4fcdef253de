"""The chain of stages: window by window, inputs → statistics → importance → permutation
→ pruned weights → inputs of the next window."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.components import PermutationLearner
from permllm.core.permutations import is_permutation
from permllm.core.statistics import SQUARE_SUM, Statistic
from permllm.errors import RunFailed, UserError
from permllm.models.decoder import Decoder
from permllm.models.linears import Group
from permllm.pipeline.schema import Pipeline
from permllm.results import LayerReport
from permllm.runner.calibration import Sequences
from permllm.runner.chain_keys import ChainKeys
from permllm.runner.checkpoints import (
    PrunedWindow,
    load_window,
    place_window,
    save_window,
    window_path,
)
from permllm.runner.constrained import ConstrainedWindow, Constraints
from permllm.runner.plan import Run
from permllm.runner.pruning import LinearPruning
from permllm.runner.settings import LinearSettings, needed, pruned_groups, settle
from permllm.runner.stages import Cost, Meter, Outcome, Stages
from permllm.runner.statistics import Sums, add_sums, fill_unseen
from permllm.runner.streams import Streams
from permllm.runner.windows import Window, cut_windows, span


@attrs.define(eq=False)
class Chain:
    """Prunes a model window by window.

    The decoder keeps its dense weights throughout; pruned ones are substituted at
    call time. Every stage's result is taken from the cache where a run before had the same.

    Attributes:
        decoder: the dense model.
        pipeline: what to do.
        sequences: the calibration tokens.
        device: where the layers of the current window compute.
        run: names the run for the observers.
        hook: the life-cycle hooks (pluggy's relay).
        directory: where finished windows are kept, or None.
        stages: computes results, or finds them.
        constraints: what orders the groups may get.
    """

    decoder: Decoder
    pipeline: Pipeline
    sequences: Sequences
    device: torch.device
    run: Run
    hook: Any
    directory: Path | None = None
    stages: Stages = attrs.field(factory=Stages)
    constraints: Constraints = attrs.field(factory=Constraints)
    settings: dict[str, LinearSettings] = attrs.field(init=False)
    streams: Streams = attrs.field(init=False)
    keys: ChainKeys = attrs.field(init=False)
    pruning: LinearPruning = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.settings = settle(self.decoder, self.pipeline)
        self.pruning = LinearPruning(self.decoder, self.settings, self.device)
        dense = self.pipeline.layers.inputs == "dense"
        self.streams = Streams(self.decoder, self.sequences, self.device, self.stages, dense)
        layer_of = {name: linear.layer for name, linear in self.decoder.linears.items()}
        self.keys = ChainKeys(self.stages, self.pipeline, self.sequences, self.settings, layer_of)

    def prune(self) -> PrunedWindow:
        """Prune all windows; the result covers the whole model."""
        weights: dict[str, Tensor] = {}
        perms: dict[str, Tensor] = {}
        importance: dict[str, Tensor] = {}
        reports: list[LayerReport] = []
        cost = Cost()
        spans = cut_windows(len(self.decoder.layers), self.pipeline.layers.window)
        for index, layers in enumerate(spans):
            names = tuple(self.decoder.layer_names[layer] for layer in layers)
            self.hook.permllm_window_started(
                run=self.run, window=index, windows=len(spans), layers=names
            )
            key = self.keys.window(layers)
            window = self._kept(index, layers, key) or self._prune_window(index, layers, key)
            weights |= window.weights
            perms |= window.perms
            importance |= window.importance
            reports += window.reports
            cost += window.cost
            self.hook.permllm_window_finished(
                run=self.run, window=index, reports=window.reports, seconds=window.cost.seconds
            )
            self.streams.later(layers, window.weights)
            self.keys.passed(key)
        return PrunedWindow(weights, perms, importance, tuple(reports), cost, self.keys.model())

    # --- one window --------------------------------------------------------------

    def _kept(self, index: int, layers: range, key: str | None) -> PrunedWindow | None:
        """The window from an earlier attempt or from another run, if there is one."""
        cache = self.stages.cache
        path = self.directory and window_path(self.directory, index)
        if path and path.exists() and (window := self._readable(path, key)):
            return window
        entry = cache.find("windows", key) if cache and key else None
        window = self._readable(entry, key) if entry else None
        if window is None:
            return None
        if path:
            place_window(path, window, entry)
        self.stages.on_found(f"pruning, {span(layers)}", window.cost.seconds)
        return window

    def _readable(self, path: Path, key: str | None) -> PrunedWindow | None:
        try:
            window = load_window(path)
        except UserError as error:
            self.hook.permllm_warning(message=f"{error.message}: the window is pruned again")
            return None
        return window if window.key == (key or "") else None

    def _prune_window(self, index: int, layers: range, key: str | None) -> PrunedWindow:
        self.streams.catch_up()
        self.decoder.place(self.device, layers)
        window, before = self._window(index, layers)
        learner = self.pipeline.layers.permutation
        if self.constraints:
            view = ConstrainedWindow.of(window, self.constraints)
            # Where every group keeps its order, there is nothing to learn.
            outcome = self._permutations(learner, view) if view.groups else Outcome({}, Cost())
            perms = view.expanded(outcome.tensors)
        else:
            outcome = self._permutations(learner, window)
            perms = outcome.tensors
        with Meter().running() as meter:
            importance = {
                group: window.group_scores(group).sum(0, dtype=torch.float32).cpu()
                for group in window.groups
            }
            weights, reports = self._prune_layers(window, perms)
        cost = before + outcome.cost + meter.cost
        result = PrunedWindow(weights, perms, importance, tuple(reports), cost, key or "")
        if self.directory:
            cache = self.stages.cache
            entry = None
            if cache and key:
                write = partial(save_window, window=result)
                entry = cache.put("windows", key, ".safetensors", write)
            place_window(window_path(self.directory, index), result, entry)
        return result

    def _permutations(self, learner: PermutationLearner, window: Window) -> Outcome:
        """What a learner finds for a window, now or in an earlier run."""

        def learn(log: list[Any]) -> dict[str, Tensor]:
            outer = window.on_step
            window.on_step = partial(self._on_step, window.index, "permutation", window.name, log)
            try:
                perms = learner.learn(window)
            finally:
                window.on_step = outer
            _check_perms(perms, window.groups, learner.name)
            return {group: perms[group] for group in window.groups}

        key = self.keys.permutations(learner, window.layers)
        said = f"order ({learner.name}), {window.name}"
        outcome = self.stages.tensors("permutations", key, learn, said=said)
        if outcome.found:
            # Its course belongs to this run's record as well.
            for step, total, figures in outcome.log:
                self._training_step(window.index, "permutation", step, total, figures)
        # In one order, found or not: learners that start from them draw random numbers in it.
        perms = {group: outcome.tensors[group] for group in window.groups}
        return attrs.evolve(outcome, tensors=perms)

    def _on_step(
        self,
        index: int,
        stage: str,
        name: str,
        log: list[Any],
        step: int,
        total: int,
        figures: dict[str, float],
    ) -> None:
        # The window itself must not be an argument: it would hold itself, and its tensors
        # would stay until the garbage collector looks.
        log.append((step, total, figures))
        self._training_step(index, stage, step, total, figures)
        self._progress(f"learning, {name}", step, total)

    def _training_step(
        self, index: int, stage: str, step: int, total: int, figures: dict[str, float]
    ) -> None:
        self.hook.permllm_training_step(
            run=self.run, window=index, stage=stage, step=step, total=total, figures=figures
        )

    def window(self, index: int, layers: range) -> Window:
        """The window over some layers as the learner sees it: inputs, statistics, scores."""
        return self._window(index, layers)[0]

    def _window(self, index: int, layers: range) -> tuple[Window, Cost]:
        groups = pruned_groups(self.decoder, self.settings, layers)
        used = [self.settings[linear] for group in groups.values() for linear in group.linears]
        metrics = [settings.metric for settings in used]
        pruners = [settings.pruner for settings in used if not settings.pruner.sequential]
        extra = self.pipeline.layers.permutation.needs
        sums, cost = self._statistics(layers, needed([*metrics, *pruners], extra))
        window = Window(
            index=index,
            layers=layers,
            decoder=self.decoder,
            device=self.device,
            tokens=self.sequences.tokens,
            calibration=self.sequences.calibration,
            learning=self.sequences.learning,
            held_out=self.sequences.held_out,
            pruned_inputs=self.streams.pruned,
            dense_inputs=self.streams.dense,
            groups=groups,
            patterns={
                name: self.settings[group.linears[0]].pattern for name, group in groups.items()
            },
            all_scores=self.pruning.scores(groups, sums),
            all_statistics=sums,
            seed=(self.pipeline.seed * 1_000_003 + index) % 2**63,
            batch_size=self.sequences.batch_size,
            pruners={
                linear: self.settings[linear].pruner
                for group in groups.values()
                for linear in group.linears
            },
            on_progress=self._progress,
            on_warning=lambda message: self.hook.permllm_warning(message=message),
            keep_states=self.streams.keep,
            find_perms=lambda learner, window: self._permutations(learner, window).tensors,
        )
        # A pruner may train, too.
        window.on_step = partial(self._on_step, index, "pruner", window.name, [])
        return window, cost

    def _prune_layers(
        self, window: Window, perms: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[LayerReport]]:
        """Prune a window layer by layer.

        A pruner that changes what it keeps wants to know what the pruned layers before
        it give: statistics and scores are then taken anew for every layer.
        """
        weights: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        reports: list[LayerReport] = []
        used = [self.settings[linear] for linear in window.linears]
        in_turn = any(settings.pruner.sequential for settings in used)
        wanted = needed([part for settings in used for part in (settings.metric, settings.pruner)])
        rows = self._calibration_rows()
        stream = self.streams.batches(self.streams.pruned, rows) if in_turn else []
        refined = self.pruning.refine(window, perms)
        scores, sums = window.all_scores, window.all_statistics
        stage, total = f"pruning, {self.run.label}", len(window.layers)
        for done, layer in enumerate(window.layers):
            self._progress(stage, done, total)
            here = {name: group for name, group in window.groups.items() if group.layer == layer}
            if in_turn:
                sums = self._layer_statistics(layer, stream, wanted)
                scores = self.pruning.scores(here, sums)
            found, said = self.pruning.prune(here, perms, scores, refined, sums)
            weights |= found
            reports += said
            norms |= {name: sums[name][SQUARE_SUM.name] for name in here}
            with torch.no_grad():
                stream = [
                    (self.decoder.run_layer(layer, hidden, calls, found), calls)
                    for hidden, calls in stream
                ]
        self._progress(stage, total, total)
        updated = self.pruning.update(window, weights)
        reports = [
            self.pruning.updated(found, updated[found.linear], norms[found.group])
            if found.linear in updated
            else found
            for found in reports
        ]
        return weights | updated, reports

    def _layer_statistics(
        self, layer: int, stream: list[tuple[Tensor, Any]], wanted: list[Statistic]
    ) -> Sums:
        """Statistics of one layer's groups over a stream that enters it."""
        sums: Sums = {}
        for hidden, calls in stream:
            _, share = self.decoder.statistics(layer, hidden, calls, wanted)
            add_sums(sums, share)
        self._fill_unseen(sums)
        return sums

    # --- statistics ---------------------------------------------------------------

    def _calibration_rows(self) -> Tensor:
        return self.sequences.learning[: self.sequences.calibration]

    def _statistics(self, layers: range, wanted: list[Statistic]) -> tuple[Sums, Cost]:
        """Statistics of all groups of a window, its own weights being dense."""
        stage = f"statistics, {span(layers)}"
        keys = {wish.name: self.keys.statistic(wish, layers) for wish in wanted}
        outcomes = {name: self.stages.find("statistics", key) for name, key in keys.items()}
        missing = [wish for wish in wanted if outcomes[wish.name] is None]
        if missing:
            with Meter().running() as meter:
                gathered = self._gathered(layers, missing, stage)
            for wish in missing:
                totals = {group: sums[wish.name].cpu() for group, sums in gathered.items()}
                made = outcomes[wish.name] = Outcome(totals, meter.cost)
                self.stages.keep("statistics", keys[wish.name], made)
        sums: Sums = {}
        cost = Cost()
        for name, outcome in outcomes.items():
            assert outcome is not None  # those that were missing are there now
            # One pass gathers them all.
            cost = max(cost, outcome.cost, key=lambda cost: cost.seconds)
            for group, total in outcome.tensors.items():
                sums.setdefault(group, {})[name] = total.to(self.device)
        if not missing:
            self.stages.on_found(stage, cost.seconds)
        self._fill_unseen(sums)
        return sums, cost

    def _gathered(self, layers: range, wanted: list[Statistic], stage: str) -> Sums:
        """Statistics of all groups of some layers, from a pass over the calibration sequences."""
        sums: Sums = {}
        parts = self._calibration_rows().split(self.sequences.batch_size)
        total = len(parts) * len(layers)
        for index, part in enumerate(parts):
            ((hidden, calls),) = self.streams.batches(self.streams.pruned, part)
            for layer in layers:
                done = index * len(layers) + layer - layers.start
                self._progress(stage, done, total)
                hidden, share = self.decoder.statistics(layer, hidden, calls, wanted)
                add_sums(sums, share)
        self._progress(stage, total, total)
        return sums

    def _fill_unseen(self, sums: Sums) -> None:
        unseen = fill_unseen(sums)
        if unseen:
            self.hook.permllm_warning(
                message=f"no calibration token reached {', '.join(unseen)}: pruned by the weights "
                "alone; more calibration sequences may help"
            )

    def _progress(self, stage: str, done: int, total: int) -> None:
        self.hook.permllm_progress(run=self.run, stage=stage, done=done, total=total)


def _check_perms(perms: Mapping[str, Tensor], groups: Mapping[str, Group], learner: str) -> None:
    for name, group in groups.items():
        perm = perms.get(name)
        if perm is None or len(perm) != group.channels or not is_permutation(perm):
            raise RunFailed(
                f"permutation learner '{learner}' gave no permutation of the {group.channels} "
                f"input channels of {name}"
            )
