"""What a run takes of memory and disk: the large tensors that are there at once."""

from __future__ import annotations

import math

import attrs

from permllm.formats.stored import COPIES_SHARE
from permllm.models.residency import ROOM
from permllm.models.shape import ModelShape
from permllm.pipeline.schema import Pipeline
from permllm.runner.calibration import wished_sequences
from permllm.runner.preflight.machine import Machine
from permllm.runner.preflight.workload import (
    GROUPS_PER_LINEAR,
    evaluation_cost,
    statistics_of,
    training_cost,
    window_layers,
    windows_by_all,
)

PROGRAM_BYTES = 350 * 2**20
"""The process itself once torch, transformers and mlflow are imported, beside what is mapped from
their files."""

ACTIVATIONS = 20
"""Hidden states that a decoder layer keeps per token for its backward pass, about."""

HELD = 1.2
"""How much more memory a training holds than it uses, about: freed pieces are kept for the
next tensors (:func:`permllm.freed_memory.keep_freed_memory`), with holes between them."""

WINDOW_BYTES = 16
"""What a window holds for each weight while it learns, about: scores, transposed copies, pruned
weights and their gradients."""

SHARE = 0.5
"""Of the free memory, what a window may hold; the rest is for what is computed."""


@attrs.frozen
class Numbers:
    """How many bytes a number of the model has.

    Attributes:
        computed: when it is computed with.
        saved: in exports.
        mapped: in the files that layers stay in until they are worked on; None where the whole
            model is unpacked into memory.
    """

    computed: int
    saved: int
    mapped: int | None = None


def window_streams(weights: int, layers: int, stream: str, free: int) -> bool:
    """Whether what a window holds of each layer is made when the layer runs, and not kept.

    Args:
        weights: numbers of the window's matrices.
        layers: of the window. What a single one holds is there while it runs in any case.
        stream: the pipeline's.
        free: bytes that are free where it computes.
    """
    if layers == 1 or stream != "auto":
        return layers > 1 and stream == "always"
    return WINDOW_BYTES * weights > SHARE * free


@attrs.frozen
class Footprint:
    """What a run takes of memory, and copies to a device.

    Attributes:
        pipeline: what it does.
        shape: the model's sizes.
        numbers: their bytes.
        machine: where.
    """

    pipeline: Pipeline
    shape: ModelShape
    numbers: Numbers
    machine: Machine

    @property
    def layers(self) -> int:
        """How many layers are held at once."""
        layers = window_layers(self.pipeline, self.shape)
        return 1 if self.streamed else layers

    @property
    def held(self) -> int:
        """How many numbers the matrices of these layers have."""
        return self.shape.pruned * self.layers // max(1, self.shape.layers)

    @property
    def batch(self) -> int:
        """Sequences of a training step that a process has; 0 where nothing trains."""
        processes = self.machine.processes
        windows, by_all = windows_by_all(self.pipeline, self.shape, processes)
        # Whoever has a window by itself has all sequences of its steps.
        share = processes if by_all == windows else 1
        return math.ceil(training_cost(self.pipeline, self.shape).batch / share)

    @property
    def streamed(self) -> bool:
        """Whether layers of a window are held one at a time."""
        layers = window_layers(self.pipeline, self.shape)
        weights = window_share(self.pipeline, self.shape)
        return window_streams(weights, layers, self.pipeline.stream, self.machine.free)

    @property
    def least(self) -> int:
        """Bytes of the machine's own memory in any case."""
        weights = self.weights if self.machine.device is None else self.at_home
        streams = stream_bytes(self.pipeline, self.shape, self.numbers.computed)
        return PROGRAM_BYTES + self.numbers.computed * weights + streams

    @property
    def host(self) -> int:
        """Bytes of the machine's own memory at the peak."""
        return self._host(self.exported if self.pipeline.export else 0)

    @property
    def host_of_others(self) -> int:
        """The same of each process but the first, which alone exports."""
        return self._host(0)

    @property
    def mapped(self) -> int:
        """Bytes of files that processes of a machine have in common: the model's, and windows.

        They are no process's own: what of them is in memory makes room where others want some.
        """
        return self.shape.pruned * (self.numbers.computed + (self.numbers.mapped or 0))

    @property
    def device(self) -> int:
        """Bytes of the device's memory at the peak; 0 where there is none."""
        return self.busy + self.numbers.computed * self.ahead

    @property
    def busy(self) -> int:
        """Of the device's memory, the bytes of what computes."""
        if self.machine.device is None:
            return 0
        around = self.shape.parameters - self.shape.pruned
        return self.numbers.computed * (around + self.held) + self.working

    def _host(self, exported: int) -> int:
        targets = self.target_bytes + exported
        if self.machine.device is not None:
            # What is fetched ahead is pinned first, as narrow as it is saved.
            pinned = self.ahead * (self.numbers.mapped or self.numbers.computed)
            return self.least + targets + self.entering + pinned
        return self.least + max(self.working + self.target_bytes, targets)

    @property
    def ahead(self) -> int:
        """Numbers of a layer that is fetched while another runs, where there is room for many."""
        device, stream = self.machine.device, self.pipeline.stream
        whole = self.numbers.computed * self.shape.pruned
        if device is None or stream == "never" or (stream == "auto" and whole <= SHARE * device):
            return 0
        one = self.shape.pruned // max(1, self.shape.layers)
        return one if ROOM * self.numbers.computed * one <= device - self.busy else 0

    @property
    def weights(self) -> int:
        """Numbers that are held where all is in the machine's own memory, dense and pruned.

        Where they are mapped, these are what is around the layers, a layer that is worked on, and
        those of a window that are pruned; finished ones are mapped from their files.
        """
        if self.numbers.mapped is None:
            return self.shape.parameters + self.shape.pruned
        one = self.shape.pruned // max(1, self.shape.layers)
        return self.shape.parameters - self.shape.pruned + one + self.held

    @property
    def at_home(self) -> int:
        """Numbers that are held in the machine's own memory where a device computes."""
        return self.held if self.numbers.mapped else self.shape.parameters + self.shape.pruned

    @property
    def working(self) -> int:
        """Bytes that a window needs where it computes, besides its weights."""
        working = working_bytes(
            self.pipeline, self.shape, self.numbers.computed, self.layers, self.batch,
            self.machine.bfloat16,
        )  # fmt: skip
        if self.batch and self.machine.device is None:
            working = round(HELD * (working + self.entering))
        widened = self.numbers.mapped not in (None, self.numbers.computed)
        if self.machine.device is None and widened and self.pipeline.stream != "always":
            working += self.numbers.computed * self.held
        return working

    @property
    def entering(self) -> int:
        """Bytes of what enters the layers of a window that is streamed, in a learning step.

        They lie in the machine's own memory, whatever computes.
        """
        others = window_layers(self.pipeline, self.shape) - self.layers
        tokens = self.batch * self.pipeline.calibration.length
        return others * tokens * self.shape.hidden * self.numbers.computed

    @property
    def target_bytes(self) -> int:
        """Bytes of the dense states that a training compares with."""
        if not self.batch:
            return 0
        calibration = self.pipeline.calibration
        sequences = wished_sequences(self.pipeline) + calibration.held_out
        return sequences * calibration.length * self.shape.hidden * self.numbers.computed

    @property
    def exported(self) -> int:
        """Bytes of an export while it is put together, in the type that it is saved in.

        Where they are much of the memory, they lie in files but for those of a layer.
        """
        if self.numbers.mapped is None:
            return 0
        whole = self.numbers.saved * self.shape.pruned
        much = self.machine.host is None or whole > COPIES_SHARE * self.machine.host
        return whole // max(1, self.shape.layers) if much else whole

    @property
    def copied(self) -> int:
        """Bytes of layers that go to the device: with each step where they do not stay."""
        if self.machine.device is None:
            return 0
        pipeline, calibration = self.pipeline, self.pipeline.calibration
        cost = training_cost(pipeline, self.shape)
        tokens = cost.tokens + evaluation_cost(pipeline, self.shape).tokens
        # For statistics, the dense stream, the pruned one and the exports, with all batches.
        passes = 4.0
        if self.streamed:
            passes += tokens // (calibration.batch_size * calibration.length)
            passes += 2.0 * cost.trained / max(1, cost.batch)
        return round(passes * self.numbers.computed * self.shape.pruned)


def window_share(pipeline: Pipeline, shape: ModelShape) -> int:
    """How many numbers the matrices of a window's layers have."""
    return shape.pruned * window_layers(pipeline, shape) // max(1, shape.layers)


def kept_bytes(pipeline: Pipeline, shape: ModelShape, number_bytes: int, saved_bytes: int) -> int:
    """What a run leaves on the disk: the files of its windows, and every export."""
    exports = (
        exporter.stored_bytes(shape.parameters, shape.pruned, saved_bytes, pipeline.pattern)
        for exporter in pipeline.export
    )
    return number_bytes * shape.pruned + sum(exports)


def stream_bytes(pipeline: Pipeline, shape: ModelShape, number_bytes: int) -> int:
    """The calibration tokens and, with several windows, the hidden states between them."""
    calibration = pipeline.calibration
    tokens = (wished_sequences(pipeline) + calibration.held_out) * calibration.length
    several = pipeline.layers.window != "all" and int(pipeline.layers.window) < shape.layers
    # One stream of the dense layers and one of the pruned ones.
    streams = 2 * shape.hidden * number_bytes if several else 0
    return tokens * (8 + streams)


def working_bytes(
    pipeline: Pipeline, shape: ModelShape, number_bytes: int, held: int, batch: int, bfloat16: bool
) -> int:
    """What a window needs besides the weights: scores, gradients and activations.

    Args:
        pipeline: what is done.
        shape: the model's sizes.
        number_bytes: of a number that is computed with.
        held: how many layers are held at once.
        batch: sequences of a training step; 0 where nothing trains.
        bfloat16: whether a training may multiply in bfloat16.
    """
    calibration, layers = pipeline.calibration, window_layers(pipeline, shape)
    share = shape.pruned * held // max(1, shape.layers)
    cost = training_cost(pipeline, shape)
    statistics = statistic_bytes(pipeline, shape, layers) + cost.bytes
    # Of what is streamed, scores are made for one linear at a time.
    scores = 4 * share if held == layers else 0
    logits = 4 * calibration.length * shape.vocabulary
    if not batch:
        return scores + statistics + calibration.batch_size * logits
    multiplied = 2 if bfloat16 else number_bytes
    # Transposed copies of scores and weights, masked weights, their gradients.
    copies = (number_bytes + 3 * multiplied) * share
    states = batch * calibration.length * shape.hidden
    kept = ACTIVATIONS * held * states * multiplied
    # The loss holds the logits of both models and a gradient.
    return scores + statistics + copies + kept + 3 * batch * logits


def statistic_bytes(pipeline: Pipeline, shape: ModelShape, layers: int) -> int:
    """Of the statistics that are held at once: those of a window's layers, or of one in turn."""
    numbers = sum(
        c_in**statistic.channel_axes * (1 if in_turn else layers)
        for statistic, c_in, in_turn in statistics_of(pipeline, shape)
    )
    return round(4 * GROUPS_PER_LINEAR * numbers / max(1, shape.layers))
