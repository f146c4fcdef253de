"""What a plan will cost, estimated before anything is loaded.

Time is floating-point operations over the speed of a short matrix product on this
machine; memory is the sum of the large tensors that are alive at once. Both are rough
and are meant to tell minutes from hours and fits from does not fit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import chain

import attrs
import torch

from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.statistics import Statistic
from permllm.distinct import distinct
from permllm.formats.export_files import SPARE_BYTES
from permllm.models.shape import ModelShape
from permllm.pipeline.schema import Pipeline
from permllm.runner.calibration import wished_sequences
from permllm.runner.selection import LinearSettings, settings_of
from permllm.runs.plan import Plan
from permllm.units import duration, memory

FORWARD, BACKWARD = 2, 4
"""Floating-point operations per parameter and token."""

PROGRAM_BYTES = 700 * 2**20
"""The process itself once torch, transformers and mlflow are imported."""

EFFICIENCY = 0.6
"""Share of a plain matrix product's speed that a whole model reaches, about."""

ACTIVATIONS = 20
"""Hidden states that a decoder layer keeps per token for its backward pass, about."""

HELD = 1.4
"""How much more memory a training holds than it uses, about: freed pieces are kept for the
next tensors (:func:`permllm.freed_memory.keep_freed_memory`), with holes between them."""

GROUPS_PER_LINEAR = 0.6
"""Permutation groups for each linear: 4 for the 7 linears of a LLaMA layer, about."""

Shapes = tuple[tuple[int, int], ...]
"""``C_out, C_in`` of some linears."""


@attrs.frozen
class Estimate:
    """What a plan will cost.

    Attributes:
        parameters: of the model.
        runs: pruned runs.
        seconds: all runs, evaluation included.
        memory_bytes: at the peak.
        least_memory_bytes: what it needs in any case: the weights, dense and pruned.
        disk_bytes: of the run's folder, with what exports want to be left on the disk.
    """

    parameters: int
    runs: int
    seconds: float
    memory_bytes: int
    least_memory_bytes: int
    disk_bytes: int

    @property
    def time(self) -> str:
        """The time, no finer than an estimate can tell: ``8 min``."""
        unit = 60 if self.seconds >= 120 else 10 if self.seconds >= 20 else 1
        return duration(unit * max(1, round(self.seconds / unit)))

    def summary(self) -> str:
        """One line: ``about 8 min 20 s, 2.1 GiB of memory and 1.6 GiB of disk``."""
        return (
            f"about {self.time}, {memory(self.memory_bytes)} of memory "
            f"and {memory(self.disk_bytes)} of disk"
        )

    def to_dict(self) -> dict[str, float]:
        """Plain data for JSON."""
        return attrs.asdict(self)


def estimate(
    plan: Plan,
    shape: ModelShape,
    number_bytes: int,
    saved_bytes: int,
    speed: float,
    *,
    mapped: bool = False,
) -> Estimate:
    """The cost of a plan.

    Args:
        plan: what is to be done.
        shape: the model's sizes.
        number_bytes: bytes of one number of the model's dtype.
        saved_bytes: of one number in exports.
        speed: floating-point operations per second, from :func:`measured_speed`.
        mapped: whether layers stay in their files until they are worked on.
    """
    operations = float(shape.parameters * FORWARD) * evaluation_cost(plan.pipeline, shape).tokens
    pipelines = [run.pipeline for run in plan.runs]
    operations += sum(run_operations(pipeline, shape) for pipeline in pipelines)
    training = sum(training_cost(pipeline, shape).seconds for pipeline in pipelines)
    # Searches of pruners: what a run's learner searches is counted by search_seconds.
    training += sum(pruning_cost(pipeline, shape).search_seconds for pipeline in pipelines)
    least = PROGRAM_BYTES + max(
        (
            number_bytes * weights_held(p, shape, mapped=mapped)
            + stream_bytes(p, shape, number_bytes)
            for p in pipelines
        ),
        default=0,
    )
    widened = mapped and number_bytes != saved_bytes
    working = max(
        (
            working_bytes(p, shape, number_bytes)
            + widened * (p.stream != "always") * number_bytes * window_share(p, shape)
            for p in pipelines
        ),
        default=0,
    )
    if mapped and any(pipeline.export for pipeline in pipelines):
        # Exports are put together in the type that they are saved in.
        working = max(working, saved_bytes * shape.pruned)
    spare = SPARE_BYTES if any(pipeline.export for pipeline in pipelines) else 0
    return Estimate(
        parameters=shape.parameters,
        runs=len(plan.runs),
        seconds=operations / speed + training + search_seconds(plan, shape),
        memory_bytes=least + working,
        least_memory_bytes=least,
        disk_bytes=sum(kept_bytes(p, shape, number_bytes, saved_bytes) for p in pipelines) + spare,
    )


def window_layers(pipeline: Pipeline, shape: ModelShape) -> int:
    """How many layers a window has."""
    window = pipeline.layers.window
    return shape.layers if window == "all" else min(int(window), shape.layers)


def window_share(pipeline: Pipeline, shape: ModelShape) -> int:
    """How many numbers the matrices of a window's layers have."""
    return shape.pruned * window_layers(pipeline, shape) // max(1, shape.layers)


def weights_held(pipeline: Pipeline, shape: ModelShape, *, mapped: bool) -> int:
    """How many weights a run holds in its own memory at once, dense and pruned.

    Where they are mapped, these are what is around the layers, a layer that is worked on, and
    a window once it is pruned; finished ones are mapped from their files.
    """
    if not mapped:
        return shape.parameters + shape.pruned
    one = shape.pruned // max(1, shape.layers)
    return shape.parameters - shape.pruned + one + window_share(pipeline, shape)


def kept_bytes(pipeline: Pipeline, shape: ModelShape, number_bytes: int, saved_bytes: int) -> int:
    """What a run leaves on the disk: the files of its windows, and every export."""
    exports = (
        exporter.stored_bytes(shape.parameters, shape.pruned, saved_bytes, pipeline.pattern)
        for exporter in pipeline.export
    )
    return number_bytes * shape.pruned + sum(exports)


def workload_of(pipeline: Pipeline, shape: ModelShape) -> Workload:
    """What the components of a run will be given."""
    calibration = pipeline.calibration
    groups = round(GROUPS_PER_LINEAR * len(shape.channels))
    linears = tuple(chain.from_iterable(shapes for _, shapes in pruned_linears(pipeline, shape)))
    return Workload(calibration.sequences, calibration.length, groups, linears)


def training_cost(pipeline: Pipeline, shape: ModelShape) -> ComponentCost:
    """Of the learner and the pruners of a run."""
    learning = pipeline.layers.permutation.cost(workload_of(pipeline, shape))
    return learning + pruning_cost(pipeline, shape)


def pruning_cost(pipeline: Pipeline, shape: ModelShape) -> ComponentCost:
    """Of the pruners of a run, each with its own linears."""
    workload = workload_of(pipeline, shape)
    pruned = list(pruned_linears(pipeline, shape))
    pruners = distinct(settings.pruner for settings, _ in pruned) or [pipeline.layers.pruner]
    cost = ComponentCost()
    for pruner in pruners:
        own = [shapes for settings, shapes in pruned if settings.pruner == pruner]
        linears = tuple(chain.from_iterable(own))
        cost += pruner.cost(attrs.evolve(workload, linears=linears))
    return cost


def pruned_linears(
    pipeline: Pipeline, shape: ModelShape
) -> Iterator[tuple[LinearSettings, Shapes]]:
    """How linears are pruned, and their shapes: one, or all experts of a parameter."""
    for name, shapes in linears_of(shape).items():
        settings = settings_of(name, pipeline)
        if settings is not None:
            yield settings, shapes


def linears_of(shape: ModelShape) -> dict[str, Shapes]:
    """The linears of the decoder layers; experts that are slices stand under the parameter."""
    linears: dict[str, Shapes] = {}
    for name, wide in shape.channels.items():
        numbers = math.prod(shape.shapes.get(f"{name}.weight", (wide, wide)))
        linears[name] = ((numbers // wide, wide),)
    for name, sizes in shape.shapes.items():
        if len(sizes) == 3 and f"{name}[0]" in shape.matrices:
            # Which of the two is C_in, the model alone could tell.
            linears[name] = ((sizes[1], sizes[2]),) * sizes[0]
    return linears


def statistics_of(pipeline: Pipeline, shape: ModelShape) -> Iterator[tuple[Statistic, int, bool]]:
    """Each statistic of each linear, its ``C_in``, and whether it is gathered layer by layer."""
    extra = pipeline.layers.permutation.needs
    for settings, shapes in pruned_linears(pipeline, shape):
        in_turn = settings.pruner.sequential
        own = settings.pruner.needs
        of_window = {*extra, *settings.metric.needs, *(() if in_turn else own)}
        for _, c_in in shapes:
            yield from ((statistic, c_in, False) for statistic in of_window)
            yield from ((statistic, c_in, True) for statistic in own if in_turn)


def search_seconds(plan: Plan, shape: ModelShape) -> float:
    """Time of learners that search, on their own or to start from.

    Runs with the same learner count once, since they share what it finds.
    """
    pipelines = {id(run.pipeline.layers.permutation): run.pipeline for run in plan.runs}
    learners = distinct(run.pipeline.layers.permutation for run in plan.runs)
    return sum(
        learner.cost(workload_of(pipelines[id(learner)], shape)).search_seconds
        for learner in learners
    )


def evaluation_cost(pipeline: Pipeline, shape: ModelShape) -> ComponentCost:
    """Of all evaluators, on one model."""
    workload = workload_of(pipeline, shape)
    return sum((one.cost(workload) for one in pipeline.evaluate), ComponentCost())


def run_operations(pipeline: Pipeline, shape: ModelShape) -> float:
    """Floating-point operations of pruning and evaluating one model."""
    calibration = pipeline.calibration
    asked = calibration.sequences * calibration.length
    # Statistics, the error of each linear and the inputs of later windows.
    tokens = FORWARD * 3 * asked
    if any(settings.pruner.sequential for settings, _ in pruned_linears(pipeline, shape)):
        # Its statistics, and the inputs of the next layer.
        tokens += FORWARD * 2 * asked
    cost = training_cost(pipeline, shape)
    # Learning needs the dense model's outputs, once a sequence, and its own gradient.
    tokens += (2 * FORWARD + BACKWARD) * cost.trained * calibration.length
    if allocation := pipeline.layers.allocation:
        tokens += FORWARD * allocation.cost(workload_of(pipeline, shape)).tokens
    tokens += FORWARD * (cost.tokens + evaluation_cost(pipeline, shape).tokens)
    sums = sum(
        2 * asked * c_in**2 * GROUPS_PER_LINEAR
        for statistic, c_in, _ in statistics_of(pipeline, shape)
        if statistic.channel_axes > 1
    )
    return float(tokens * shape.parameters) + cost.operations + sums


def stream_bytes(pipeline: Pipeline, shape: ModelShape, number_bytes: int) -> int:
    """The calibration tokens and, with several windows, the hidden states between them."""
    calibration = pipeline.calibration
    tokens = (wished_sequences(pipeline) + calibration.held_out) * calibration.length
    several = pipeline.layers.window != "all" and int(pipeline.layers.window) < shape.layers
    # One stream of the dense layers and one of the pruned ones.
    streams = 2 * shape.hidden * number_bytes if several else 0
    return tokens * (8 + streams)


def working_bytes(pipeline: Pipeline, shape: ModelShape, number_bytes: int) -> int:
    """What a window needs besides the weights: scores, gradients and activations."""
    calibration, layers = pipeline.calibration, window_layers(pipeline, shape)
    share = window_share(pipeline, shape)
    cost = training_cost(pipeline, shape)
    scores = 4 * share + statistic_bytes(pipeline, shape, layers) + cost.bytes
    logits = 4 * calibration.length * shape.vocabulary
    batch = cost.batch
    if not batch:
        return scores + calibration.batch_size * logits
    # Transposed copies of weights and scores, masked weights, their gradients.
    copies = 4 * number_bytes * share
    kept = ACTIVATIONS * layers * batch * calibration.length * shape.hidden * number_bytes
    # The loss holds the logits of both models and a gradient.
    return int(HELD * (scores + copies + kept + 3 * batch * logits))


def statistic_bytes(pipeline: Pipeline, shape: ModelShape, layers: int) -> int:
    """Of the statistics that are held at once: those of a window's layers, or of one in turn."""
    numbers = sum(
        c_in**statistic.channel_axes * (1 if in_turn else layers)
        for statistic, c_in, in_turn in statistics_of(pipeline, shape)
    )
    return round(4 * GROUPS_PER_LINEAR * numbers / max(1, shape.layers))


def measured_speed(device: torch.device, seconds: float = 0.3) -> float:
    """Floating-point operations per second that a model may reach on ``device``.

    Args:
        device: where the model will run.
        seconds: how long to measure.
    """
    size = 512 if device.type == "cpu" else 2048
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        start = time.perf_counter()
        # Reading one number waits for the device.
        (matrix @ matrix)[0, 0].item()
        # The fastest counts: the first is a warm-up, and others may be disturbed.
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return EFFICIENCY * best
