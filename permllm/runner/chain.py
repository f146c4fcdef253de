"""The chain of stages: window by window, inputs → statistics → importance → permutation
→ pruned weights → inputs of the next window."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.core.patterns import is_nm, retained_share
from permllm.core.permutations import invert, is_permutation
from permllm.core.statistics import SQUARE_SUM, Statistic
from permllm.errors import RunFailed
from permllm.models.decoder import Decoder
from permllm.models.linears import Group
from permllm.pipeline.schema import Pipeline
from permllm.results import LayerReport
from permllm.runner.calibration import Sequences
from permllm.runner.checkpoints import PrunedWindow, load_window, save_window, window_path
from permllm.runner.plan import Run
from permllm.runner.settings import LinearSettings, needed, pruned_groups, settle
from permllm.runner.statistics import Sums, add_sums, fill_unseen
from permllm.runner.windows import Window, cut_windows, span


@attrs.define(eq=False)
class Chain:
    """Prunes a model window by window.

    The decoder keeps its dense weights throughout; pruned ones are substituted at
    call time. Streams of hidden states, ``[n, L, H]`` for all sequences, carry the
    inputs of the next window; None stands for the embedded tokens.

    Attributes:
        decoder: the dense model.
        pipeline: what to do.
        sequences: the calibration tokens.
        device: where the layers of the current window compute.
        run: names the run for the observers.
        hook: the life-cycle hooks (pluggy's relay).
        directory: where finished windows are kept, or None.
        learned: permutations of the first window by what they depend on, with the
            seconds that they took: runs that differ in their pruner alone share them.
    """

    decoder: Decoder
    pipeline: Pipeline
    sequences: Sequences
    device: torch.device
    run: Run
    hook: Any
    directory: Path | None = None
    learned: dict[Any, tuple[dict[str, Tensor], float]] = attrs.field(factory=dict)
    settings: dict[str, LinearSettings] = attrs.field(init=False)
    pruned_stream: Tensor | None = attrs.field(default=None, init=False)
    dense_stream: Tensor | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.settings = settle(self.decoder, self.pipeline)

    def prune(self) -> PrunedWindow:
        """Prune all windows; the result covers the whole model."""
        weights: dict[str, Tensor] = {}
        perms: dict[str, Tensor] = {}
        importance: dict[str, Tensor] = {}
        reports: list[LayerReport] = []
        seconds = 0.0
        spans = cut_windows(len(self.decoder.layers), self.pipeline.layers.window)
        for index, layers in enumerate(spans):
            names = tuple(self.decoder.layer_names[layer] for layer in layers)
            self.hook.permllm_window_started(
                run=self.run, window=index, windows=len(spans), layers=names
            )
            self.decoder.place(self.device, layers)
            window = self._finished(index) or self._prune_window(index, layers)
            weights |= window.weights
            perms |= window.perms
            importance |= window.importance
            reports += window.reports
            seconds += window.seconds
            self.hook.permllm_window_finished(
                run=self.run, window=index, reports=window.reports, seconds=window.seconds
            )
            if index + 1 < len(spans):
                self._advance(layers, window.weights)
        return PrunedWindow(weights, perms, importance, tuple(reports), seconds)

    # --- one window --------------------------------------------------------------

    def _finished(self, index: int) -> PrunedWindow | None:
        """The window from an earlier attempt, if it was finished."""
        path = self.directory and window_path(self.directory, index)
        return load_window(path) if path and path.exists() else None

    def _prune_window(self, index: int, layers: range) -> PrunedWindow:
        began = time.perf_counter()
        window = self.window(index, layers)
        perms, shared = self._learn(window)
        importance = {
            group: window.group_scores(group).sum(0, dtype=torch.float32).cpu()
            for group in window.groups
        }
        weights, reports = self._prune_layers(window, perms)
        seconds = time.perf_counter() - began + shared
        result = PrunedWindow(weights, perms, importance, tuple(reports), seconds)
        if self.directory:
            save_window(window_path(self.directory, index), result)
        return result

    def _learn(self, window: Window) -> tuple[dict[str, Tensor], float]:
        """The window's permutations, and the seconds that another run spent on them."""
        key: Any = window.index or self._what_the_first_permutations_depend_on()
        if key in self.learned:
            return self.learned[key]
        began = time.perf_counter()
        learner = self.pipeline.layers.permutation
        perms = learner.learn(window)
        _check_perms(perms, window.groups, learner.name)
        if window.index == 0:
            self.learned[key] = perms, time.perf_counter() - began
        return perms, 0.0

    def _what_the_first_permutations_depend_on(self) -> tuple[Any, ...]:
        layers = self.pipeline.layers
        overrides = tuple(attrs.evolve(override, pruner=None) for override in layers.overrides)
        return (
            self.pipeline.calibration,
            self.pipeline.pattern,
            self.pipeline.seed,
            (layers.metric, layers.permutation, layers.window, layers.skip, overrides),
        )

    def window(self, index: int, layers: range) -> Window:
        """The window over some layers as the learner sees it: inputs, statistics, scores."""
        groups = pruned_groups(self.decoder, self.settings, layers)
        used = [self.settings[linear] for group in groups.values() for linear in group.linears]
        metrics = [settings.metric for settings in used]
        pruners = [settings.pruner for settings in used if not settings.pruner.sequential]
        extra = self.pipeline.layers.permutation.needs
        sums = self._statistics(layers, needed([*metrics, *pruners], extra))

        def on_step(step: int, total: int, figures: dict[str, float]) -> None:
            self.hook.permllm_training_step(
                run=self.run, window=index, step=step, total=total, figures=figures
            )
            self._progress(f"learning, {span(layers)}", step, total)

        return Window(
            index=index,
            layers=layers,
            decoder=self.decoder,
            device=self.device,
            tokens=self.sequences.tokens,
            calibration=self.sequences.calibration,
            learning=self.sequences.learning,
            held_out=self.sequences.held_out,
            pruned_inputs=self.pruned_stream,
            dense_inputs=self.dense_stream,
            groups=groups,
            patterns={
                name: self.settings[group.linears[0]].pattern for name, group in groups.items()
            },
            all_scores=self._scores(groups, sums),
            all_statistics=sums,
            seed=self.pipeline.seed * 1_000_003 + index,
            batch_size=self.sequences.batch_size,
            pruners={
                linear: self.settings[linear].pruner
                for group in groups.values()
                for linear in group.linears
            },
            on_step=on_step,
            on_progress=self._progress,
        )

    def _scores(
        self, groups: Mapping[str, Group], sums: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The scores of every linear of some groups."""
        scores = {}
        for name, group in groups.items():
            for linear in group.linears:
                metric = self.settings[linear].metric
                weight = self.decoder.weight(linear).to(self.device)
                scores[linear] = metric.scores(weight, sums[name])
                self._check_scores(f"metric '{metric.name}'", linear, scores[linear])
        return scores

    def _check_scores(self, whose: str, linear: str, scores: Tensor) -> None:
        shape = tuple(self.decoder.weight(linear).shape)
        if scores.shape != shape or not bool((scores >= 0).all() & scores.isfinite().all()):
            raise RunFailed(
                f"{whose} gave scores for {linear} that are not finite and non-negative of "
                f"shape {shape}"
            )

    def _prune_layers(
        self, window: Window, perms: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[LayerReport]]:
        """Prune a window layer by layer.

        A pruner that changes what it keeps wants to know what the pruned layers before
        it give: statistics and scores are then taken anew for every layer.
        """
        weights: dict[str, Tensor] = {}
        reports: list[LayerReport] = []
        used = [self.settings[linear] for linear in window.linears]
        in_turn = any(settings.pruner.sequential for settings in used)
        wanted = needed([part for settings in used for part in (settings.metric, settings.pruner)])
        rows = self._calibration_rows()
        stream = self._stream_batches(self.pruned_stream, rows) if in_turn else []
        refined = self._refine(window, perms)
        scores, sums = window.all_scores, window.all_statistics
        stage, total = f"pruning, {self.run.label}", len(window.layers)
        for done, layer in enumerate(window.layers):
            self._progress(stage, done, total)
            here = {name: group for name, group in window.groups.items() if group.layer == layer}
            if in_turn:
                sums = self._layer_statistics(layer, stream, wanted)
                scores = self._scores(here, sums)
            found, said = self._prune_groups(here, perms, scores, refined, sums)
            weights |= found
            reports += said
            with torch.no_grad():
                stream = [
                    (self.decoder.run_layer(layer, hidden, calls, found), calls)
                    for hidden, calls in stream
                ]
        self._progress(stage, total, total)
        return weights, reports

    def _refine(self, window: Window, perms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The scores that pruners put in place of the metric's, each for its own linears."""
        refined: dict[str, Tensor] = {}
        for pruner in dict.fromkeys(self.settings[linear].pruner for linear in window.linears):
            for linear, scores in pruner.refine(window, perms).items():
                if self.settings[linear].pruner == pruner:
                    self._check_scores(f"pruner '{pruner.name}'", linear, scores)
                    refined[linear] = scores
        return refined

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

    def _prune_groups(
        self,
        groups: Mapping[str, Group],
        perms: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        refined: Mapping[str, Tensor],
        sums: Mapping[str, Mapping[str, Tensor]],
    ) -> tuple[dict[str, Tensor], list[LayerReport]]:
        """Prune the linears of some groups under their permutations.

        Reports tell what an order retains of the metric's scores, whatever decides what
        is kept, so that they compare.
        """
        weights: dict[str, Tensor] = {}
        reports = []
        for name, group in groups.items():
            for linear in group.linears:
                dense = self.decoder.weight(linear).detach().to(self.device)
                deciding = refined.get(linear, scores[linear])
                pruned = self._prune_linear(linear, dense, deciding, perms[name], sums[name])
                reports.append(
                    report(linear, group, self.settings[linear], dense, pruned, scores[linear],
                           perms[name], sums[name])
                )  # fmt: skip
                weights[linear] = pruned.cpu()
        return weights, reports

    def _prune_linear(
        self,
        linear: str,
        dense: Tensor,
        scores: Tensor,
        perm: Tensor,
        sums: Mapping[str, Tensor],
    ) -> Tensor:
        """The pruned weight of one linear, in original channel order."""
        settings = self.settings[linear]
        perm = perm.to(dense.device)
        needs = {need.name: need for need in settings.pruner.needs}
        moved = {
            key: need.permuted(sums[key].to(dense.device), perm) for key, need in needs.items()
        }
        pruned, _ = settings.pruner.prune(
            dense[:, perm], scores.to(dense.device)[:, perm], settings.pattern, moved
        )
        if pruned.shape != dense.shape or not is_nm(pruned, settings.pattern):
            raise RunFailed(
                f"pruner '{settings.pruner.name}' gave {linear} a weight that is not "
                f"{settings.pattern} of shape {tuple(dense.shape)}"
            )
        if not bool(pruned.isfinite().all()):
            raise RunFailed(
                f"pruner '{settings.pruner.name}' gave {linear} NaN or infinite weights"
            )
        return pruned[:, invert(perm)]

    # --- streams ------------------------------------------------------------------

    def _calibration_rows(self) -> Tensor:
        return self.sequences.learning[: self.sequences.calibration]

    def _stream_batches(self, stream: Tensor | None, rows: Tensor) -> list[tuple[Tensor, Any]]:
        """Hidden states that enter the window, with the layers' other arguments, in batches."""
        batches = []
        for part in rows.split(self.sequences.batch_size):
            calls = self.decoder.embed(self.sequences.tokens[part].to(self.device))
            batches.append(
                (calls.hidden if stream is None else stream[part].to(self.device), calls)
            )
        return batches

    def _statistics(self, layers: range, wanted: list[Statistic]) -> Sums:
        """Statistics of all groups of a window, its own weights being dense."""
        sums: Sums = {}
        parts = self._calibration_rows().split(self.sequences.batch_size)
        total = len(parts) * len(layers)
        for index, part in enumerate(parts):
            ((hidden, calls),) = self._stream_batches(self.pruned_stream, part)
            for layer in layers:
                done = index * len(layers) + layer - layers.start
                self._progress(f"statistics, {span(layers)}", done, total)
                hidden, share = self.decoder.statistics(layer, hidden, calls, wanted)
                add_sums(sums, share)
        self._progress(f"statistics, {span(layers)}", total, total)
        self._fill_unseen(sums)
        return sums

    def _fill_unseen(self, sums: Sums) -> None:
        unseen = fill_unseen(sums)
        if unseen:
            self.hook.permllm_warning(
                message=f"no calibration token reached {', '.join(unseen)}: pruned by the weights "
                "alone; more calibration sequences may help"
            )

    def _advance(self, layers: range, weights: Mapping[str, Tensor]) -> None:
        """Move the streams to the end of a finished window."""
        weights = {name: weight.to(self.device) for name, weight in weights.items()}
        self.dense_stream = self._through(self.dense_stream, layers, {})
        dense_inputs = self.pipeline.layers.inputs == "dense"
        self.pruned_stream = (
            self.dense_stream
            if dense_inputs
            else self._through(self.pruned_stream, layers, weights)
        )

    @torch.no_grad()
    def _through(
        self, stream: Tensor | None, layers: range, weights: Mapping[str, Tensor]
    ) -> Tensor:
        """The stream ``[n, L, H]`` after some layers."""
        outputs = []
        for part in torch.arange(len(self.sequences.tokens)).split(self.sequences.batch_size):
            ((hidden, calls),) = self._stream_batches(stream, part)
            for layer in layers:
                hidden = self.decoder.run_layer(layer, hidden, calls, weights)
            outputs.append(hidden.cpu())
        return torch.cat(outputs)

    def _progress(self, stage: str, done: int, total: int) -> None:
        self.hook.permllm_progress(run=self.run, stage=stage, done=done, total=total)


def report(
    linear: str,
    group: Group,
    settings: LinearSettings,
    dense: Tensor,
    pruned: Tensor,
    scores: Tensor,
    perm: Tensor,
    sums: Mapping[str, Tensor],
) -> LayerReport:
    """The figures of one pruned linear; all tensors ``[C_out, C_in]`` in original order."""
    pattern = settings.pattern
    norms = sums[SQUARE_SUM.name].to(dense.device)
    change = ((dense - pruned).float().square() * norms).sum()
    return LayerReport(
        linear=linear,
        group=group.name,
        shape=(dense.shape[0], dense.shape[1]),
        pattern=str(pattern),
        retained_before=retained_share(scores, pattern),
        retained=retained_share(scores, pattern, perm.to(scores.device)),
        sparsity=float((pruned == 0).double().mean()),
        error=float(change / (dense.float().square() * norms).sum().clamp_min(1e-30)),
    )


def _check_perms(perms: Mapping[str, Tensor], groups: Mapping[str, Group], learner: str) -> None:
    for name, group in groups.items():
        perm = perms.get(name)
        if perm is None or len(perm) != group.channels or not is_permutation(perm):
            raise RunFailed(
                f"permutation learner '{learner}' gave no permutation of the {group.channels} "
                f"input channels of {name}"
            )
