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

    def catch_up(self) -> None:
        """Move the streams through all finished windows."""
        for layers, weights in self.passed:
            # Those of layers that only visit the device visit it with them.
            if place_layers(self.decoder, self.device, layers, self.stream):
                weights = {name: weight.to(self.device) for name, weight in weights.items()}
            after = self._after(layers, self.dense, {})
            self.dense = self._joined(partial(self._kept, layers.stop, after))
            if self.dense_inputs:
                self.pruned = self.dense
            else:
                self.pruned = self._joined(self._after(layers, self.pruned, weights))
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

    def _kept(self, layer: int, after: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        return self.keep(layer, rows, partial(after, rows))

    def _after(
        self, layers: range, before: Tensor | None, weights: Mapping[str, Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """What gives the states of a batch after some layers.

        Layers that visit the device do so once for all batches, and not with each.
        """
        if not self.decoder.residency.visits(layers):
            return partial(self._run, layers, before, weights)

        @cache
        def of_all() -> Tensor | None:
            states = before
            for layer in layers:
                with self.decoder.visiting([layer], weights) as own:
                    states = self._joined(partial(self._run, [layer], states, own))
            return states

        def of_batch(rows: Tensor) -> Tensor:
            states = of_all()
            assert states is not None  # there are layers
            return states[rows]

        return of_batch

    @torch.no_grad()
    def _run(
        self,
        layers: Iterable[int],
        before: Tensor | None,
        weights: Mapping[str, Tensor],
        rows: Tensor,
    ) -> Tensor:
        hidden, calls = self.batch(None if before is None else before[rows], rows)
        for layer in layers:
            hidden = self.decoder.run_layer(layer, hidden, calls, weights)
        return hidden

    def _joined(self, run: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([run(rows).cpu() for rows in self.sequences.batches()])
