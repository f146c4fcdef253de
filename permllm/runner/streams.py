"""Streams of hidden states between windows: what the dense and the pruned layers hand on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.core.digest import tensor_digest
from permllm.models.decoder import Decoder
from permllm.runner.caching.memo import Stages
from permllm.runner.caching.store import STATES
from permllm.runner.calibration import Sequences
from permllm.runner.placing import place_layers


@attrs.define(eq=False)
class Streams:
    """The hidden states ``[n, L, H]`` of all sequences that enter the current window.

    None stands for the embedded tokens, before the first window. A stream moves on in
    batches that are the same in every run, so that equal runs round alike.

    Attributes:
        decoder: the dense model.
        sequences: the calibration tokens.
        device: where layers compute.
        stages: keeps the dense model's states.
        dense_inputs: whether windows see what the dense layers hand on.
        windows: how many windows the streams go through.
        stream: whether layers visit the device or stay there; see :func:`place_layers`.
        dense, pruned: the streams.
        passed: finished windows that the streams have not gone through yet: their layers
            and the pruned weights.
    """

    decoder: Decoder
    sequences: Sequences
    device: torch.device
    stages: Stages
    dense_inputs: bool = False
    windows: int = 1
    stream: str = "auto"
    dense: Tensor | None = None
    pruned: Tensor | None = None
    passed: list[tuple[range, Mapping[str, Tensor]]] = attrs.field(factory=list)

    def later(self, layers: range, weights: Mapping[str, Tensor]) -> None:
        """Note a finished window; the streams go through it once they are asked for."""
        self.passed.append((layers, weights))

    def follow(self, others: Streams) -> None:
        """Be where other streams of the same windows are."""
        self.dense, self.pruned, self.passed = others.dense, others.pruned, list(others.passed)

    def catch_up(self) -> None:
        """Move the streams through all finished windows."""
        for layers, weights in self.passed:
            # Those of layers that only visit the device visit it with them.
            if place_layers(self.decoder, self.device, layers, self.stream, self.stages.world):
                weights = {name: weight.to(self.device) for name, weight in weights.items()}
            self.dense = self._moved(layers, self.dense, {}, keep=True)
            if self.dense_inputs:
                self.pruned = self.dense
            else:
                self.pruned = self._moved(layers, self.pruned, weights)
        self.passed.clear()

    def keep(self, layer: int, rows: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """Dense states at the end of the layer before ``layer``, computed once for all runs."""
        tokens = self.sequences.tokens[rows]
        halved = torch.is_autocast_enabled(self.device.type)
        key = self.stages.key(STATES, lambda: [layer, tensor_digest(tokens), halved])
        parts = self.windows * len(self.sequences.batches())
        return self.stages.part(STATES, key, make, parts).to(self.device)

    def batches(self, stream: Tensor | None, rows: Tensor) -> list[tuple[Tensor, Any]]:
        """A stream in batches, with the layers' other arguments."""
        parts = rows.split(self.sequences.batch_size)
        return [self.batch(None if stream is None else stream[part], part) for part in parts]

    def batch(self, hidden: Tensor | None, rows: Tensor) -> tuple[Tensor, Any]:
        """Hidden states of some sequences where layers compute, and their other arguments."""
        calls = self.decoder.embed(self.sequences.tokens[rows].to(self.device))
        return (calls.hidden if hidden is None else hidden.to(self.device)), calls

    def _moved(
        self,
        layers: range,
        before: Tensor | None,
        weights: Mapping[str, Tensor],
        *,
        keep: bool = False,
    ) -> Tensor:
        """A stream after some layers; every process moves its own batches on, and gets all.

        Args:
            layers: which.
            before: the stream that enters the first.
            weights: that replace the dense ones.
            keep: whether other runs may want what comes out.
        """
        batches = self.sequences.batches()
        own = [batches[place] for place in self.stages.world.own(len(batches))]
        after = self._after(layers, before, weights, own)
        states = (
            self.keep(layers.stop, rows, partial(after, rows)) if keep else after(rows)
            for rows in own
        )
        return torch.cat(self.stages.world.joined([state.cpu() for state in states]))

    def _after(
        self,
        layers: range,
        before: Tensor | None,
        weights: Mapping[str, Tensor],
        batches: Iterable[Tensor],
    ) -> Callable[[Tensor], Tensor]:
        """What gives the states of each of some batches after some layers.

        Layers that visit the device do so once for all batches, and not with each, and the next
        is fetched meanwhile.
        """

        def entering(rows: Tensor) -> Tensor | None:
            return None if before is None else before[rows]

        if not self.decoder.residency.visits(layers):
            return lambda rows: self._run(layers, entering(rows), weights, rows)

        @cache
        def of_all() -> dict[int, Tensor]:
            states = {int(rows[0]): entering(rows) for rows in batches}
            for layer in layers:
                then = layer + 1 if layer + 1 in layers else None
                with self.decoder.visiting([layer], weights, then=then) as own:
                    for rows in batches:
                        hidden = states[int(rows[0])]
                        states[int(rows[0])] = self._run([layer], hidden, own, rows).cpu()
            return {first: state for first, state in states.items() if state is not None}

        return lambda rows: of_all()[int(rows[0])]

    @torch.no_grad()
    def _run(
        self,
        layers: Iterable[int],
        entering: Tensor | None,
        weights: Mapping[str, Tensor],
        rows: Tensor,
    ) -> Tensor:
        hidden, calls = self.batch(entering, rows)
        for layer in layers:
            hidden = self.decoder.run_layer(layer, hidden, calls, weights)
        return hidden
