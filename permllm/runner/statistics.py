"""The stage before importance: statistics of what enters each permutation group."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.contexts.sequences import Sequences
from permllm.contexts.window import span
from permllm.core.statistics import SEQUENCES, Statistic
from permllm.models.checks import not_finite
from permllm.models.decoder import Decoder
from permllm.models.statistics import Sums, add_sums, fill_unseen
from permllm.results import Cost
from permllm.runner.caching.chain_keys import ChainKeys
from permllm.runner.caching.memo import Meter, Outcome, Stages
from permllm.runner.reporting import Reporter
from permllm.runner.streams import Streams

Flat = dict[tuple[str, str], Tensor]
"""By group and statistic."""

Stream = dict[int, list[tuple[Tensor, Any]]]
"""Hidden states ``[b, L, H]`` in batches, with the layers' other arguments; by the shard that the
batches belong to, of this process's shards."""


@attrs.frozen(eq=False)
class Gathering:
    """Gathers the statistics of windows and of single layers.

    Attributes:
        decoder: the dense model.
        sequences: the calibration tokens.
        device: where layers compute.
        streams: the hidden states that enter the current window.
        stages: keeps what was gathered.
        keys: what that depends on.
        reporter: is told how far it is.
    """

    decoder: Decoder
    sequences: Sequences
    device: torch.device
    streams: Streams
    stages: Stages
    keys: ChainKeys
    reporter: Reporter

    def of_window(self, layers: range, wanted: list[Statistic]) -> tuple[Sums, Cost]:
        """Statistics of all groups of a window, its own weights being dense."""
        stage = f"statistics, {span(layers)}"
        keys = {wish.name: self.keys.statistic(wish, layers) for wish in wanted}
        outcomes = {wish.name: self._kept(keys[wish.name]) for wish in wanted}
        missing = [wish for wish in wanted if outcomes[wish.name] is None]
        if missing:
            own = [keys[wish.name] for wish in missing]
            with self.stages.leased("statistics", own, stage=stage):
                # Another run may have gathered them meanwhile.
                outcomes |= {wish.name: self._kept(keys[wish.name]) for wish in missing}
                missing = [wish for wish in missing if outcomes[wish.name] is None]
                outcomes |= self._made(layers, missing, keys, stage) if missing else {}
        sums: Sums = {}
        cost = Cost()
        for name, outcome in outcomes.items():
            assert outcome is not None  # those that were missing are there now
            # One pass gathers them all.
            cost = max(cost, outcome.cost, key=lambda cost: cost.seconds)
            for group, total in outcome.tensors.items():
                sums.setdefault(group, {})[name] = total.to(self.device)
        if not missing:
            self.stages.on_reuse(stage, cost.seconds)
        self._complete(sums)
        return sums, cost

    def _kept(self, key: str | None) -> Outcome | None:
        return self.stages.find("statistics", key)

    def _made(
        self,
        layers: range,
        missing: list[Statistic],
        keys: dict[str, str | None],
        stage: str,
    ) -> dict[str, Outcome]:
        """Statistics by name that nobody has kept, gathered and kept now."""
        with Meter().running() as meter:
            gathered = self._gathered(layers, missing, stage)
        made = {}
        for wish in missing:
            totals = {group: sums[wish.name].cpu() for group, sums in gathered.items()}
            made[wish.name] = Outcome(totals, meter.cost)
            self.stages.keep("statistics", keys[wish.name], made[wish.name])
        return made

    def of_layer(self, layer: int, stream: Stream, wanted: list[Statistic]) -> Sums:
        """Statistics of one layer's groups over a stream that enters it."""

        def share(shard: int) -> Flat:
            sums: Sums = {}
            for hidden, calls in stream[shard]:
                add_sums(sums, self.decoder.statistics(layer, hidden, calls, wanted)[1])
            return _flat(sums)

        with self.decoder.visiting([layer]):
            sums = _nested(self.stages.world.summed(len(self._shards()), share))
        self._complete(sums)
        return sums

    def stream(self) -> Stream:
        """The calibration sequences as they enter the current window."""
        parts, shards = self._parts(), self._shards()
        pruned = self.streams.pruned
        return {
            shard: [
                self.streams.batch(None if pruned is None else pruned[part], part)
                for part in parts[shards[shard].start : shards[shard].stop]
            ]
            for shard in self.stages.world.own(len(shards))
        }

    def _parts(self) -> tuple[Tensor, ...]:
        """The rows of the calibration in batches."""
        rows = self.sequences.learning[: self.sequences.calibration]
        return rows.split(self.sequences.batch_size)

    def _shards(self) -> list[range]:
        """Which batches are added up by themselves before all are."""
        return self.stages.world.cut(len(self._parts()))

    def _gathered(self, layers: range, wanted: list[Statistic], stage: str) -> Sums:
        """Statistics of all groups of some layers, from a pass over the calibration sequences."""
        sums: Sums = {}
        parts, shards = self._parts(), self._shards()
        own = [place for shard in self.stages.world.own(len(shards)) for place in shards[shard]]
        pruned = self.streams.pruned
        entering = {place: None if pruned is None else pruned[parts[place]] for place in own}
        # A layer that visits the device does so once, for all batches, whose states are held
        # meanwhile, and the next is fetched; where all stay there, those of one batch are.
        visits = self.decoder.residency.visits(layers)
        turns = [range(layer, layer + 1) for layer in layers] if visits else [layers]
        total = len(own) * len(layers)
        steps = iter(range(total))

        def share(turn: range, shard: int) -> Flat:
            sums: Sums = {}
            for place in shards[shard]:
                hidden, calls = self.streams.batch(entering[place], parts[place])
                for layer in turn:
                    self.reporter.progress(stage, next(steps), total)
                    hidden, found = self.decoder.statistics(layer, hidden, calls, wanted)
                    add_sums(sums, found)
                entering[place] = hidden.cpu() if turn.stop < layers.stop else None
            return _flat(sums)

        for turn in turns:
            then = turn.stop if turn.stop in layers else None
            with self.decoder.visiting(turn, then=then):
                sums |= _nested(self.stages.world.summed(len(shards), partial(share, turn)))
        self.reporter.progress(stage, total, total)
        return sums

    def _complete(self, sums: Sums) -> None:
        """Refuse sums that are not finite, fill those of groups that no token reached, and say
        how many sequences they are over.

        Raises:
            UserError: the activations overflow float16.
            RunFailed: they are infinite or NaN for another reason.
        """
        for name in sums:
            if not all(bool(total.isfinite().all()) for total in sums[name].values()):
                linear = self.decoder.groups[name].linears[0]
                what = f"what {linear} reads is not finite"
                raise not_finite(what, self.decoder.model)
        if unseen := fill_unseen(sums):
            self.reporter.warn(
                f"no calibration token reached {', '.join(unseen)}: pruned by the weights "
                "alone; more calibration sequences may help"
            )
        count = torch.tensor(float(self.sequences.calibration), device=self.device)
        for totals in sums.values():
            totals[SEQUENCES] = count


def _flat(sums: Sums) -> Flat:
    return {(group, name): one for group, own in sums.items() for name, one in own.items()}


def _nested(flat: Flat) -> Sums:
    sums: Sums = {}
    for (group, name), one in flat.items():
        sums.setdefault(group, {})[name] = one
    return sums
