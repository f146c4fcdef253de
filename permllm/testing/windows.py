"""A small window over a real model, for tests of permutation learners and pruners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import torch
from torch import Tensor

from permllm.contexts.sequences import Sequences
from permllm.contexts.window import WholeTensors, Window
from permllm.core.patterns import Pattern
from permllm.core.statistics import SEQUENCES, SQUARE_SUM, TOKENS, Statistic
from permllm.metrics.wanda import Wanda
from permllm.models.decoder import Decoder
from permllm.models.statistics import Sums, add_sums
from permllm.runs.checkpoints import Checkpoint
from permllm.testing.models import VOCABULARY, tiny_model

State = dict[str, dict[str, Tensor]]
"""Tensors by the name under which they were kept."""


@attrs.frozen(eq=False)
class MemoryCheckpoints:
    """What a component keeps of a window, in memory: ``window.checkpoints = MemoryCheckpoints()``.

    Attributes:
        state: what is kept now.
        moments: what was kept after each ``keep``: where a run might have been killed.
    """

    work = True

    state: State = attrs.field(factory=dict)
    moments: list[State] = attrs.field(factory=list)

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep copies on the CPU, as a run does."""
        self.state[name] = {key: one.detach().cpu().clone() for key, one in tensors.items()}
        self.moments.append(dict(self.state))

    def kept(self, name: str) -> Checkpoint | None:
        """Copies of what was kept."""
        if name not in self.state:
            return None
        return Checkpoint({key: one.clone() for key, one in self.state[name].items()})

    def of(self, whose: str | None) -> MemoryCheckpoints:
        """The same: there is one component only."""
        return self

    def interrupted(self) -> Iterator[MemoryCheckpoints]:
        """What a run finds that was killed at the first, a middle or the last moment."""
        count = len(self.moments)
        for place in sorted({0, count // 2, count - 1} & set(range(count))):
            yield MemoryCheckpoints(dict(self.moments[place]))


def toy_window(
    *,
    pattern: Pattern | None = None,
    layers: range = range(2),
    sequences: int = 8,
    held_out: int = 2,
    length: int = 12,
    seed: int = 0,
    needs: tuple[Statistic, ...] = (),
    device: str | torch.device = "cpu",
) -> Window:
    """A window of a tiny LLaMA with random calibration tokens and Wanda scores.

    Args:
        pattern: the N:M of all groups; 2:4 where it is None.
        layers: the decoder layers that it covers, of two.
        sequences: learning sequences, of which the first half makes one pass.
        held_out: sequences that are not learned from.
        length: tokens of each sequence.
        seed: of the weights, the tokens and the window.
        needs: statistics beyond Wanda's.
        device: where it computes, such as that of :func:`permllm.testing.device.simulated_device`.
    """
    device = torch.empty(0, device=device).device
    decoder = Decoder.trace(tiny_model("llama-gqa", seed=seed))
    decoder.place(device)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (sequences + held_out, length), generator=generator)
    calibration = (sequences + 1) // 2
    wanted = list(dict.fromkeys((SQUARE_SUM, TOKENS, *needs)))
    calls = decoder.embed(tokens[:calibration].to(device))
    sums: Sums = {}
    stream = calls.hidden
    for layer in range(layers.stop):
        stream, share = decoder.statistics(layer, stream, calls, wanted)
        if layer in layers:
            add_sums(sums, share)
    for totals in sums.values():
        totals[SEQUENCES] = torch.tensor(float(calibration), device=device)
    everything = decoder.embed(tokens.to(device))
    inputs = everything.hidden
    with torch.no_grad():
        for layer in range(layers.start):
            inputs = decoder.run_layer(layer, inputs, everything)
    groups = {name: group for name, group in decoder.groups.items() if group.layer in layers}
    inputs = inputs.cpu()
    scores = {
        linear: Wanda().scores(decoder.weight(linear), sums[name])
        for name, group in groups.items()
        for linear in group.linears
    }
    return Window(
        index=0,
        layers=layers,
        decoder=decoder,
        device=device,
        sequences=Sequences(
            tokens=tokens,
            calibration=calibration,
            learning=torch.arange(sequences),
            held_out=torch.arange(sequences, sequences + held_out),
            batch_size=4,
        ),
        pruned_inputs=inputs if layers.start else None,
        dense_inputs=inputs if layers.start else None,
        groups=groups,
        patterns=dict.fromkeys(groups, pattern or Pattern(2, 4)),
        tensors=WholeTensors(decoder, device, scores, sums),
        seed=seed,
    )


def toy_windows(
    *, sequences: int = 8, needs: tuple[Statistic, ...] = ()
) -> Iterator[tuple[Window, Window]]:
    """Windows of several patterns, at the first layer and after it, each twice.

    Args:
        sequences: learning sequences of each.
        needs: statistics beyond Wanda's.
    """
    for pattern, layers in (
        (Pattern(2, 4), range(2)),
        (Pattern(1, 4), range(1, 2)),
        (Pattern(4, 8), range(1)),
    ):
        one, two = (
            toy_window(pattern=pattern, layers=layers, sequences=sequences, needs=needs)
            for _ in range(2)
        )
        yield one, two
