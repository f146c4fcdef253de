"""A window of decoder layers, as a permutation learner sees it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Protocol

import attrs
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from permllm.contexts.sequences import Sequences
from permllm.core.patterns import Pattern
from permllm.core.remade import Remade
from permllm.errors import RunFailed
from permllm.freed_memory import limit_freed_memory
from permllm.models.decoder import Decoder
from permllm.models.linears import Group
from permllm.world import ALONE, World

KeepStates = Callable[[int, Tensor, Callable[[], Tensor]], Tensor]
"""From the layer where they end, the rows, and how to compute them, to dense hidden states."""

StepCallback = Callable[[int, int, dict[str, float]], None]
ProgressCallback = Callable[[str, int, int], None]
WarningCallback = Callable[[str], None]


class Learner(Protocol):
    """What learns permutations: :class:`permllm.components.PermutationLearner`."""

    def learn(self, window: Window) -> dict[str, Tensor]:
        """One permutation ``LongTensor[C_in]`` for each group of a window."""
        ...


class Checkpoints(Protocol):
    """Keeps tensors of work that is not finished: :class:`permllm.runs.checkpoints.Checkpoints`."""

    @property
    def work(self) -> bool:
        """Whether anything is kept at all."""
        ...

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> object:
        """Keep tensors under a name."""
        ...

    def kept(self, name: str) -> Checkpoint | None:
        """What was kept under a name, or None."""
        ...

    def of(self, whose: str | None) -> Checkpoints:
        """Those of one component, told apart by its key; None is that of nobody who keeps any."""
        ...


class Checkpoint(Protocol):
    """What was kept."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """On the CPU, by name."""
        ...


class NoCheckpoints:
    """Keeps nothing."""

    work = False

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep nothing."""

    def kept(self, name: str) -> None:
        """Nothing was kept."""

    def of(self, whose: str | None) -> NoCheckpoints:
        """The same."""
        return self


FindPermutations = Callable[[Learner, "Window"], dict[str, Tensor]]
"""From a learner and the window to what it learns there."""


class Tensors(Protocol):
    """The weights, scores and statistics of a window, as it shows them."""

    def weight(self, linear: str) -> Tensor:
        """The dense weight ``[C_out, C_in]``."""
        ...

    def scores(self, linear: str) -> Tensor:
        """The scores ``[C_out, C_in]``."""
        ...

    def statistics(self, group: str) -> Mapping[str, Tensor]:
        """The statistics of a group's inputs, by name."""
        ...

    def assembled(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights ``[C_out, C_in]`` of the decoder's linears, from those of the window's."""
        ...


@attrs.frozen(eq=False)
class WholeTensors:
    """Those of the decoder's own linears and groups.

    Attributes:
        decoder: has the dense weights.
        device: where they are wanted.
        all_scores: of each linear.
        all_statistics: of each group, by name.
    """

    decoder: Decoder
    device: torch.device
    all_scores: Mapping[str, Tensor]
    all_statistics: Mapping[str, Mapping[str, Tensor]]

    def weight(self, linear: str) -> Tensor:
        """The dense weight ``[C_out, C_in]`` on the device."""
        return self.decoder.weight(linear).to(self.device)

    def scores(self, linear: str) -> Tensor:
        """The scores ``[C_out, C_in]`` on the device.

        Raises:
            RunFailed: there are none yet: a metric asks for what it is to find.
        """
        if linear not in self.all_scores:
            raise RunFailed(f"the scores of {linear} were asked for before a metric gave them")
        return self.all_scores[linear].to(self.device)

    def statistics(self, group: str) -> Mapping[str, Tensor]:
        """The statistics of a group's inputs, by name."""
        return self.all_statistics[group]

    def assembled(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights as they are."""
        return weights


@attrs.define(eq=False)
class Window:
    """Consecutive decoder layers whose permutations are learned together.

    Sequences are named by their rows in ``tokens``. Weights and scores have the
    orientation ``[C_out, C_in]``, with input channels in their original order.

    Attributes:
        index: 0 for the first window.
        layers: the decoder layers that it covers.
        decoder: the dense model.
        device: where the window computes.
        sequences: the calibration sequences.
        pruned_inputs: ``[n, L, H]``, what enters the window from the pruned layers
            before it; None for the first window, whose inputs are embedded anew.
        dense_inputs: the same from the dense layers.
        groups: the permutation groups of these layers, by name.
        patterns: the N:M of each group.
        tensors: weights, scores and statistics of the groups.
        seed: for everything random.
        pruners: who prunes each linear; for pruners, since runs that differ in them share
            what learners learn.
        streamed: whether the window is too much for the memory, so that what there is of a layer
            is made when the layer runs, and again for its backward pass.
        world: the processes that take part, each with the same window.
        on_step, on_progress: are told how far learning is.
        on_warning: is told what the user should know.
        keep_states: keeps the dense model's states for other runs.
        find_permutations: lets a learner learn, unless a run has kept what it learned.
        checkpoints: keeps what :meth:`keep` is given.
    """

    index: int
    layers: range
    decoder: Decoder
    device: torch.device
    sequences: Sequences
    pruned_inputs: Tensor | None
    dense_inputs: Tensor | None
    groups: Mapping[str, Group]
    patterns: Mapping[str, Pattern]
    tensors: Tensors
    seed: int
    pruners: Mapping[str, object] = attrs.field(factory=dict)
    streamed: bool = False
    world: World = attrs.field(default=ALONE, repr=False)
    on_step: StepCallback = lambda step, total, figures: None
    on_progress: ProgressCallback = lambda stage, done, total: None
    on_warning: WarningCallback = lambda message: None
    keep_states: KeepStates = lambda layer, rows, make: make()
    find_permutations: FindPermutations = lambda learner, window: learner.learn(window)
    checkpoints: Checkpoints = attrs.field(factory=NoCheckpoints, repr=False)
    kept_targets: dict[bool, dict[int, Tensor]] = attrs.field(factory=dict, repr=False)

    @property
    def tokens(self) -> Tensor:
        """``LongTensor[n, L]``, all calibration sequences."""
        return self.sequences.tokens

    @property
    def calibration(self) -> int:
        """How many sequences the calibration asked for: one pass."""
        return self.sequences.calibration

    @property
    def learning(self) -> Tensor:
        """Rows that may be learned from, the calibration's first."""
        return self.sequences.learning

    @property
    def held_out(self) -> Tensor:
        """Rows that must not be learned from, for selection."""
        return self.sequences.held_out

    @property
    def batch_size(self) -> int:
        """Sequences per forward pass where no gradient is needed."""
        return self.sequences.batch_size

    @property
    def name(self) -> str:
        """Such as ``layers 0 to 29``."""
        return span(self.layers)

    @property
    def reaches_head(self) -> bool:
        """Whether the window ends at the last decoder layer, so that logits can be had."""
        return self.layers.stop == len(self.decoder.layers)

    @property
    def linears(self) -> list[str]:
        """The linears of all groups, group by group."""
        return [linear for group in self.groups.values() for linear in group.linears]

    def linears_of(self, pruner: object) -> list[str]:
        """The linears that ``pruner`` prunes, and those of which nothing is said."""
        return [name for name in self.linears if self.pruners.get(name, pruner) == pruner]

    def group_of(self, linear: str) -> str:
        """The name of the group that a linear is in."""
        return next(name for name, group in self.groups.items() if linear in group.linears)

    def layer_of(self, linear: str) -> int:
        """The decoder layer of a linear, from 0 to ``model_layers - 1``."""
        return self.groups[self.group_of(linear)].layer

    @property
    def model_layers(self) -> int:
        """How many decoder layers the whole model has."""
        return len(self.decoder.layers)

    def pattern(self, group: str) -> Pattern:
        """The N:M of a group."""
        return self.patterns[group]

    def weight(self, linear: str) -> Tensor:
        """The dense weight ``[C_out, C_in]`` on the window's device."""
        return self.tensors.weight(linear)

    def scores(self, linear: str) -> Tensor:
        """The scores ``[C_out, C_in]`` of a linear on the window's device."""
        return self.tensors.scores(linear)

    def group_scores(self, group: str, most: int | None = None) -> Tensor:
        """The scores of all linears of a group, stacked: ``[ΣC_out, C_in]``.

        Args:
            group: its name.
            most: about how many rows are enough; of more, evenly spaced ones are taken.
        """
        scores = [self.scores(linear) for linear in self.groups[group].linears]
        step = 1 if most is None else math.ceil(sum(map(len, scores)) / most)
        return torch.cat([each[::step] for each in scores])

    def statistics(self, group: str) -> Mapping[str, Tensor]:
        """The statistics of a group's inputs, by name."""
        return self.tensors.statistics(group)

    def for_each(
        self, linears: Iterable[str], make: Callable[[str], Tensor]
    ) -> Mapping[str, Tensor]:
        """What there is to keep of some linears, such as their weights in another orientation.

        Args:
            linears: their names.
            make: gives the tensor of a linear, the same one each time.

        Returns:
            the tensors by linear; in a streamed window each is made anew when it is asked for.
        """
        if self.streamed:
            return Remade(tuple(linears), make)
        return {linear: make(linear) for linear in linears}

    def outputs(
        self, weights: Mapping[str, Tensor], rows: Tensor, *, recompute: bool = False
    ) -> Tensor:
        """Hidden states at the window's end under replaced weights.

        Args:
            weights: by linear, ``[C_out, C_in]``; gradients flow back to them.
            rows: ``LongTensor[b]``.
            recompute: keep only what enters each layer for the backward pass, and run the
                layer again there, as a streamed window does in any case.

        Returns:
            ``[b, L, H]``.
        """
        return _last(self._states(self.pruned_inputs, rows, weights, recompute))

    def layer_outputs(
        self, weights: Mapping[str, Tensor], rows: Tensor, *, recompute: bool = False
    ) -> list[Tensor]:
        """Hidden states after each layer of the window under replaced weights.

        Args:
            weights, rows, recompute: as in :meth:`outputs`.

        Returns:
            ``[b, L, H]`` for each layer; the last are :meth:`outputs`.
        """
        return list(self._states(self.pruned_inputs, rows, weights, recompute))

    def gradients(
        self, linears: Sequence[str], loss: Callable[[Tensor, Tensor], Tensor]
    ) -> Iterator[dict[str, Tensor]]:
        """The gradients of a loss with respect to the dense weights, one sequence at a time.

        Over the sequences of the calibration. Their squares may be summed to a regional
        gradient score (Wanda++), or to the diagonal of a Fisher matrix.

        Args:
            linears: whose weights.
            loss: of the hidden states ``[1, L, H]`` at the window's end and the row
                ``LongTensor[1]`` that they belong to; a number.

        Yields:
            ``[C_out, C_in]`` by linear, in the weights' dtype.
        """
        for row in self.learning[: self.calibration].split(1):
            weights = {name: self.weight(name).detach().requires_grad_() for name in linears}
            with torch.enable_grad():
                value = loss(self.outputs(weights, row, recompute=True), row)
            found = torch.autograd.grad(value, tuple(weights.values()), materialize_grads=True)
            yield dict(zip(weights, found, strict=True))

    def targets(self, rows: Tensor) -> Tensor:
        """The dense model's hidden states ``[b, L, H]`` at the window's end.

        Computed once per sequence and kept, with the products of the caller's autocast.
        Batches are those of the sequences, whatever rows are asked for, so that runs which share
        them round alike.
        """
        kept = self._own_targets()
        wanted = set(rows.tolist())
        if missing := wanted - kept.keys():
            for part in self.sequences.batches():
                if missing & set(part.tolist()):
                    hidden = self.keep_states(self.layers.stop, part, partial(self._dense, part))
                    # Those of all sequences would take much of a device.
                    kept.update(zip(part.tolist(), hidden.cpu(), strict=True))
        return torch.stack([kept[row] for row in rows.tolist()]).to(self.device)

    def share_targets(self, rows: Tensor) -> None:
        """Have the processes compute what :meth:`targets` will be asked for, each some batches.

        Batches that come next are computed, too, as far as a process would be idle. One process
        alone computes targets as they are asked for.

        Args:
            rows: ``LongTensor[b]``, the same in all processes.
        """
        if not self.world.many:
            return
        kept, wanted = self._own_targets(), set(rows.tolist())
        batches = self.sequences.batches()
        missing = [
            place for place, part in enumerate(batches) if not set(part.tolist()) <= kept.keys()
        ]
        places = [place for place in missing if wanted & set(batches[place].tolist())]
        if not places:
            return
        later = [place for place in missing if place > places[-1]]
        places += later[: -len(places) % self.world.size]
        own = [batches[places[index]] for index in self.world.own(len(places))]
        states = [self.keep_states(self.layers.stop, part, partial(self._dense, part)).cpu()
                  for part in own]  # fmt: skip
        for place, hidden in zip(places, self.world.joined(states), strict=True):
            kept.update(zip(batches[place].tolist(), hidden, strict=True))

    def _own_targets(self) -> dict[int, Tensor]:
        """Targets by row, with the products of the caller's autocast."""
        return self.kept_targets.setdefault(torch.is_autocast_enabled(self.device.type), {})

    def permutations(self, learner: Learner) -> dict[str, Tensor]:
        """What another learner learns for this window, such as one to start from.

        A run that used it before may have kept that.
        """
        return self.find_permutations(learner, self)

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors, so that a run that is killed goes on from there: see :meth:`kept`.

        They are written to the run's folder, in place of what was kept under the name before,
        and removed once the window is finished. To write them takes time: do it every few
        minutes, and not at every step. Nothing is kept where there is no folder.

        Args:
            name: for the component's own use; others may keep something under the same.
            tensors: all that is needed to go on, with the same result to the bit.
        """
        self.checkpoints.keep(name, tensors)

    def kept(self, name: str) -> dict[str, Tensor] | None:
        """What the same component kept for the same window in a run that was interrupted.

        Nothing that another component, another version of its code, other options, data, weights
        or a machine that rounds otherwise would have kept is ever given.

        Returns:
            the tensors, on the CPU; None where nothing was kept, or where it is damaged, which
            is said in a warning.
        """
        checkpoint = self.checkpoints.kept(name)
        return None if checkpoint is None else checkpoint.tensors

    @torch.no_grad()
    def layer_targets(self, rows: Tensor) -> list[Tensor]:
        """The dense model's hidden states ``[b, L, H]`` after each layer of the window.

        Computed anew every time: to keep all of them would take much room.
        """
        return list(self._states(self.dense_inputs, rows, {}))

    @torch.no_grad()
    def through_the_rest(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Hidden states at the last layer's end, through the dense layers after the window.

        Args:
            hidden: ``[b, L, H]``, states at the window's end.
            rows: ``LongTensor[b]``, whose they are; a row may come several times.

        Returns:
            ``[b, L, H]``, for :meth:`logits`.
        """
        parts = rows.split(self.batch_size)
        calls = [self.decoder.embed(self.tokens[part].to(self.device)) for part in parts]
        states = [part.to(self.device) for part in hidden.split(self.batch_size)]
        for layer in range(self.layers.stop, self.model_layers):
            with self.decoder.visiting([layer], then=layer + 1):
                states = list(map(partial(self.decoder.run_layer, layer), states, calls))
        return torch.cat(states)

    def logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """The model's logits ``[b, L, V]`` for hidden states at the last layer's end."""
        return self.decoder.head(hidden, self.tokens[rows].to(self.device))

    def target_logits(self, rows: Tensor) -> Tensor:
        """The dense model's logits ``[b, L, V]``."""
        with torch.no_grad():
            return self.logits(self.targets(rows), rows)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` units of ``stage`` are done."""
        self.on_progress(f"{stage}, {self.name}", done, total)

    def training_step(self, step: int, total: int, figures: dict[str, float]) -> None:
        """Say that training step ``step`` of ``total`` is done, with its figures."""
        self.on_step(step, total, figures)

    def warn(self, message: str) -> None:
        """Say something of this window that the user should know."""
        self.on_warning(f"{self.name}: {message}")

    @torch.no_grad()
    def _dense(self, rows: Tensor) -> Tensor:
        return _last(self._states(self.dense_inputs, rows, {}))

    def _states(
        self,
        inputs: Tensor | None,
        rows: Tensor,
        weights: Mapping[str, Tensor],
        recompute: bool = False,
    ) -> Iterator[Tensor]:
        """The hidden states after each layer, one layer at a time."""
        calls = self.decoder.embed(self.tokens[rows].to(self.device))
        hidden = calls.hidden if inputs is None else inputs[rows].to(self.device)
        weights = self.tensors.assembled(weights)
        recompute = recompute or self.streamed
        # What enters the layers is little beside the layers, and much if it is of all of them.
        apart = self.streamed and self.device.type != "cpu"
        for layer in self.layers:
            run: Callable[[Tensor], Tensor] = partial(
                self.decoder.run_layer, layer, calls=calls, weights=weights
            )
            if apart:
                run = self._visiting(layer, run)
            if recompute:
                with save_on_cpu() if apart else nullcontext():
                    hidden = checkpoint(run, hidden, use_reentrant=False)
            else:
                hidden = run(hidden)
            if self.streamed:
                # Between what layers keep there are holes, which those of the next do not fit.
                limit_freed_memory()
                if hidden.requires_grad:
                    hidden.register_hook(lambda gradient: limit_freed_memory())
            yield hidden

    def _visiting(self, layer: int, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A layer's run, for which it visits the device while the next one is fetched.

        That is the layer after it, and the one before it when it runs again for a backward pass.
        """
        neighbours = iter((layer + 1, layer - 1))

        def visited(hidden: Tensor) -> Tensor:
            then = next(neighbours, None)
            with self.decoder.visiting([layer], then=then if then in self.layers else None):
                return run(hidden)

        return visited


def _last(states: Iterator[Tensor]) -> Tensor:
    return deque(states, maxlen=1).pop()


def span(layers: range) -> str:
    """``layer 3`` or ``layers 0 to 29``."""
    first, last = layers.start, layers.stop - 1
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def cut_windows(layers: int, size: int | str) -> list[range]:
    """The layers cut into windows of ``size`` (``"all"`` for one window)."""
    if size == "all":
        return [range(layers)]
    step = int(size)
    return [range(start, min(start + step, layers)) for start in range(0, layers, step)]
