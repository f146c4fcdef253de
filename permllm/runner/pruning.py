"""Prunes linears under their permutations, layer by layer: scores in, checked weights and
reports out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.components import Component, Pruner
from permllm.contexts.window import WholeTensors, Window
from permllm.core.patterns import is_nm, retained_share
from permllm.core.permutations import identity, invert
from permllm.core.statistics import SQUARE_SUM, Statistic
from permllm.distinct import distinct
from permllm.given import Giver, by_name, kind_of, pruned_weight
from permllm.models.decoder import Decoder
from permllm.models.linears import Group
from permllm.models.unchanged import unchanged
from permllm.results import LayerReport
from permllm.runner.finished_layers import FinishedLayer, FinishedLayers
from permllm.runner.reporting import Reporter
from permllm.runner.selection import LinearSettings, needed
from permllm.runner.statistics import Gathering, Stream

GroupSums = Mapping[str, Mapping[str, Tensor]]
"""By group, by statistic."""


@attrs.frozen(eq=False)
class ScoredWindow:
    """A window with the scores that learners see, and what these come from.

    Attributes:
        window: with the scores.
        metric_scores: ``[C_out, C_in]`` by linear: the metrics'.
        refined: those that pruners put in their place before permutations are learned.
    """

    window: Window
    metric_scores: Mapping[str, Tensor]
    refined: Mapping[str, Tensor]


@attrs.frozen(eq=False)
class LinearPruning:
    """What pruning a linear takes besides its scores and its order.

    Attributes:
        decoder: has the dense weights.
        settings: pattern, metric and pruner of every linear.
        device: where to compute.
        key_of: the key of a pruner, by which its checkpoints are told apart.
    """

    decoder: Decoder
    settings: Mapping[str, LinearSettings]
    device: torch.device
    key_of: Callable[[Component], str | None] = lambda component: None

    def tensors(self, sums: GroupSums, scores: Mapping[str, Tensor]) -> WholeTensors:
        """Weights, scores and statistics, for a window."""
        return WholeTensors(self.decoder, self.device, scores, sums)

    def scored(self, window: Window, sums: GroupSums) -> ScoredWindow:
        """A window that has no scores, with those of its metrics and pruners."""
        found: dict[str, Tensor] = {}
        checked: set[str] = set()
        # Not the window itself, which will hold what makes its scores: such a circle, and the
        # statistics in it, would stay in the device's memory until Python looks for circles.
        group_of = {linear: window.group_of(linear) for linear in window.linears}

        def scores_of(linear: str) -> Tensor:
            if linear in found:
                return found[linear]
            made = self._metric_scores(linear, sums[group_of[linear]], linear not in checked)
            checked.add(linear)
            return made

        for metric in distinct(self.settings[linear].metric for linear in window.linears):
            linears = [name for name in window.linears if self.settings[name].metric == metric]
            if window.streamed and not metric.looks():
                continue  # scores_of makes them where they are asked for
            giver = Giver("metric", metric)
            with self._reading(giver):
                given = metric.window_scores(self._own(window, metric), linears)
            scores = by_name(given, giver, "scores")
            for linear in linears:
                if linear not in scores:
                    raise giver.wrong(f"gave no scores for {linear}")
                self.check_scores(giver, linear, scores[linear])
                found[linear] = scores[linear]
        scores = window.for_each(window.linears, scores_of)
        window = attrs.evolve(window, tensors=self.tensors(sums, scores))
        original = {name: identity(group.channels) for name, group in window.groups.items()}
        refined = self.refine(window, original, first=True)
        if refined:
            both = window.for_each(
                window.linears,
                lambda linear: refined[linear] if linear in refined else scores[linear],
            )
            window = attrs.evolve(window, tensors=self.tensors(sums, both))
        return ScoredWindow(window, scores, refined)

    def scores_anew(
        self, window: ScoredWindow, groups: Mapping[str, Group], sums: GroupSums
    ) -> dict[str, Tensor]:
        """The scores of some groups' linears from other statistics.

        Those of metrics that look at the whole window stay.
        """
        scores = {}
        for name, group in groups.items():
            for linear in group.linears:
                metric = self.settings[linear].metric
                if metric.looks():
                    scores[linear] = window.metric_scores[linear]
                    continue
                scores[linear] = self._metric_scores(linear, sums[name], check=True)
        return scores

    def _metric_scores(self, linear: str, sums: Mapping[str, Tensor], check: bool) -> Tensor:
        """What a metric that looks at nothing else gives for a linear."""
        metric, weight = self.settings[linear].metric, self.decoder.weight(linear).to(self.device)
        if not check:
            return metric.scores(weight, sums)
        giver = Giver("metric", metric)
        with self._reading(giver):
            scores = metric.scores(weight, sums)
        self.check_scores(giver, linear, scores)
        return scores

    def check_scores(self, giver: Giver, linear: str, scores: object) -> None:
        """Refuse scores that cannot be used.

        Raises:
            GivenWrong: they are of another shape, negative or not finite.
        """
        if fault := _fault_of(scores, self.decoder.linears[linear].shape):
            raise giver.wrong(f"gave scores for {linear} that are {fault}")

    def prune(
        self,
        groups: Mapping[str, Group],
        permutations: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        refined: Mapping[str, Tensor],
        sums: GroupSums,
    ) -> tuple[dict[str, Tensor], list[LayerReport]]:
        """Prune the linears of some groups under their permutations.

        Reports tell what an order retains of the metric's scores, whatever decides what
        is kept, so that they compare.

        Args:
            groups: whose linears.
            permutations: ``LongTensor[C_in]`` by group.
            scores: ``[C_out, C_in]`` by linear, in original order: the metric's.
            refined: those that pruners put in their place, for some linears.
            sums: the statistics.

        Returns:
            the pruned weights on the CPU, in original order, and a report on each.

        Raises:
            GivenWrong: a pruner gave something else than an N:M weight.
        """
        weights: dict[str, Tensor] = {}
        reports = []
        for name, group in groups.items():
            for linear in group.linears:
                dense = self.decoder.weight(linear).detach().to(self.device)
                own = scores[linear]
                deciding = refined.get(linear, own)
                pruned = self._pruned(linear, dense, deciding, permutations[name], sums[name])
                reports.append(
                    report(linear, group, self.settings[linear], dense, pruned, own,
                           permutations[name], sums[name])
                )  # fmt: skip
                weights[linear] = pruned.cpu()
        return weights, reports

    def refine(
        self, window: Window, permutations: Mapping[str, Tensor], *, first: bool
    ) -> dict[str, Tensor]:
        """The scores that pruners put in place of the metric's, each for its own linears.

        Args:
            window: with the metrics' scores.
            permutations: ``LongTensor[C_in]`` by group.
            first: of pruners that refine before permutations are learned, or of the others.
        """
        refined: dict[str, Tensor] = {}
        for pruner, own in self._pruners(window):
            if pruner.refines_first != first:
                continue
            giver = Giver("pruner", pruner)
            with self._reading(giver):
                given = pruner.refine(own, permutations)
            for linear, scores in by_name(given, giver, "scores", window.linears).items():
                if self.settings[linear].pruner == pruner:
                    self.check_scores(giver, linear, scores)
                    refined[linear] = scores
        return refined

    def update(self, window: Window, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What pruners make of the weights that are kept, each of its own linears.

        Raises:
            GivenWrong: one gave no weight, one of another shape, one that is not finite, or one
                that is not zero where it was.
        """
        updated: dict[str, Tensor] = {}
        for pruner, own in self._pruners(window):
            giver = Giver("pruner", pruner)
            with self._reading(giver):
                given = pruner.update(own, weights)
            for linear, weight in by_name(given, giver, "weights", window.linears).items():
                if self.settings[linear].pruner == pruner:
                    updated[linear] = _updated(giver, linear, weights[linear], weight)
        return updated

    def updated(self, report: LayerReport, weight: Tensor, norms: Tensor) -> LayerReport:
        """The report on a linear after its weight was updated."""
        dense = self.decoder.weight(report.linear).detach()
        return attrs.evolve(
            report,
            sparsity=zero_share(weight),
            error=relative_error(dense.to(weight.device), weight, norms),
        )

    def _reading(self, giver: Giver) -> AbstractContextManager[None]:
        """What a component does in the block leaves the model as it is: weights may be views."""
        return unchanged(self.decoder.model, giver, sampled=0)

    def _pruners(self, window: Window) -> list[tuple[Pruner, Window]]:
        """Each pruner, and the window in which it finds its own checkpoints."""
        pruners = distinct(self.settings[linear].pruner for linear in window.linears)
        return [(pruner, self._own(window, pruner)) for pruner in pruners]

    def _own(self, window: Window, component: Component) -> Window:
        """The window in which a component finds its own checkpoints."""
        own = window.checkpoints.of(self.key_of(component))
        return attrs.evolve(window, checkpoints=own)

    def _pruned(
        self,
        linear: str,
        dense: Tensor,
        scores: Tensor,
        permutation: Tensor,
        sums: Mapping[str, Tensor],
    ) -> Tensor:
        """The pruned weight of one linear, in original channel order."""
        settings = self.settings[linear]
        permutation = permutation.to(dense.device)
        needs = {need.name: need for need in settings.pruner.needs}
        moved = {
            key: need.permuted(sums[key].to(dense.device), permutation)
            for key, need in needs.items()
        }
        given = settings.pruner.prune(
            dense[:, permutation], scores.to(dense.device)[:, permutation], settings.pattern, moved
        )
        giver = Giver("pruner", settings.pruner)
        pruned = pruned_weight(given, dense, giver, linear)
        if not is_nm(pruned, settings.pattern):
            raise giver.wrong(f"gave {linear} a weight that is not {settings.pattern}")
        return pruned[:, invert(permutation)]


@attrs.frozen(eq=False)
class LayerPruning:
    """Prunes the layers of a window one after the other.

    Attributes:
        decoder: the dense model.
        settings: pattern, metric and pruner of every linear.
        gathering: gathers statistics.
        linears: prunes linears.
        reporter: is told how far it is.
    """

    decoder: Decoder
    settings: Mapping[str, LinearSettings]
    gathering: Gathering
    linears: LinearPruning
    reporter: Reporter

    def prune(
        self,
        scored: ScoredWindow,
        permutations: Mapping[str, Tensor],
        finished: FinishedLayers | None = None,
    ) -> tuple[dict[str, Tensor], list[LayerReport]]:
        """The pruned weights of a window's linears, and a report on each.

        A pruner that changes what it keeps wants to know what the pruned layers before
        it give: statistics and scores are then taken anew for every layer.

        Args:
            scored: the window.
            permutations: ``LongTensor[C_in]`` by group.
            finished: keeps layers that took long, and has those of an earlier attempt.
        """
        window, finished = scored.window, finished or FinishedLayers()
        weights: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        reports: list[LayerReport] = []
        used = [self.settings[linear] for linear in window.linears]
        in_turn = any(settings.pruner.sequential for settings in used)
        wanted = needed([part for settings in used for part in (settings.metric, settings.pruner)])
        stream = self.gathering.stream() if in_turn else None
        later = finished.scores(lambda: self.linears.refine(window, permutations, first=False))
        refined = {**scored.refined, **later}
        run = self.reporter.run
        stage, total = f"pruning, {run.label if run else window.name}", len(window.layers)
        for done, layer in enumerate(window.layers):
            self.reporter.progress(stage, done, total)
            prune = partial(self._layer, scored, permutations, refined, layer, stream, wanted)
            made = finished.layer(layer, prune)
            weights |= made.weights
            norms |= made.norms
            reports += made.reports
            if stream is not None:
                stream = self._after(layer, stream, made.weights)
        self.reporter.progress(stage, total, total)
        updated = self.linears.update(window, weights)
        reports = [
            self.linears.updated(one, updated[one.linear], norms[one.group])
            if one.linear in updated
            else one
            for one in reports
        ]
        return weights | updated, reports

    def _layer(
        self,
        scored: ScoredWindow,
        permutations: Mapping[str, Tensor],
        refined: Mapping[str, Tensor],
        layer: int,
        stream: Stream | None,
        wanted: list[Statistic],
    ) -> FinishedLayer:
        """Prune a layer by the window's scores and statistics, or by those of a stream."""
        window, sums = scored.window, dict[str, Mapping[str, Tensor]]()
        here = {name: group for name, group in window.groups.items() if group.layer == layer}
        scores = scored.metric_scores
        if stream is None:
            sums = {name: window.statistics(name) for name in here}
        else:
            sums = dict(self.gathering.of_layer(layer, stream, wanted))
            scores = self.linears.scores_anew(scored, here, sums)
        weights, reports = self.linears.prune(here, permutations, scores, refined, sums)
        norms = {name: sums[name][SQUARE_SUM.name] for name in here}
        return FinishedLayer(weights, norms, reports)

    @torch.no_grad()
    def _after(self, layer: int, stream: Stream, weights: Mapping[str, Tensor]) -> Stream:
        """The stream after a pruned layer."""
        # Copied once, and not again for every batch.
        with self.decoder.visiting([layer], weights) as here:
            return {
                shard: [
                    (self.decoder.run_layer(layer, hidden, calls, here), calls)
                    for hidden, calls in batches
                ]
                for shard, batches in stream.items()
            }


def report(
    linear: str,
    group: Group,
    settings: LinearSettings,
    dense: Tensor,
    pruned: Tensor,
    scores: Tensor,
    permutation: Tensor,
    sums: Mapping[str, Tensor],
) -> LayerReport:
    """The figures of one pruned linear; all tensors ``[C_out, C_in]`` in original order."""
    pattern = settings.pattern
    return LayerReport(
        linear=linear,
        group=group.name,
        shape=(dense.shape[0], dense.shape[1]),
        pattern=str(pattern),
        retained_before=retained_share(scores, pattern),
        retained=retained_share(scores, pattern, permutation.to(scores.device)),
        sparsity=zero_share(pruned),
        error=relative_error(dense, pruned, sums[SQUARE_SUM.name]),
    )


def _fault_of(scores: Any, shape: tuple[int, ...]) -> str | None:
    """Why scores cannot be used; None if they can."""
    if not isinstance(scores, Tensor):
        return f"no tensor, but {type(scores).__name__}"
    if scores.shape != shape:
        return f"of shape {tuple(scores.shape)}, where the weight has {shape}"
    if unusable := scores.numel() - int(scores.isfinite().sum()):
        return f"not finite ({unusable:,} of {scores.numel():,})"
    if bool((scores < 0).any()):
        return f"negative (the least is {float(scores.min()):.3g})"
    return None


def zero_share(weight: Tensor) -> float:
    """The share of zeros, 0 to 1."""
    return float((weight == 0).double().mean())


def relative_error(dense: Tensor, pruned: Tensor, norms: Tensor) -> float:
    """``‖(W - W') X‖² / ‖W X‖²`` without off-diagonal terms.

    Args:
        dense, pruned: ``[C_out, C_in]``.
        norms: ``[C_in]``, the square sums of the inputs.
    """
    norms = norms.to(dense.device)
    change = ((dense - pruned).float().square() * norms).sum()
    return float(change / (dense.float().square() * norms).sum().clamp_min(1e-30))


def _updated(giver: Giver, linear: str, before: Tensor, after: Any) -> Tensor:
    """What a pruner made of a weight, on the CPU."""
    where = f"updated {linear}"
    if not isinstance(after, Tensor):
        raise giver.wrong(f"{where} to {kind_of(after)}, where a tensor is expected")
    after = after.detach().cpu()
    if after.shape != before.shape or after.dtype != before.dtype:
        raise giver.wrong(f"{where} to another shape or type than {tuple(before.shape)}")
    if not bool(after.isfinite().all()):
        raise giver.wrong(f"{where} to NaN or infinite weights")
    if bool(after[before == 0].any()):
        raise giver.wrong(f"{where} where it had been cut to zero")
    return after
