"""What a plan will cost, estimated before anything is loaded.

Time is floating-point operations over the speed of a short matrix product on this
machine; memory is the sum of the large tensors that are alive at once. Both are rough
and are meant to tell minutes from hours and fits from does not fit.
"""

from __future__ import annotations

import time

import attrs
import torch

from permllm.contexts.cost import ComponentCost, Workload
from permllm.distinct import distinct
from permllm.formats.export_files import SPARE_BYTES
from permllm.models.shape import ModelShape
from permllm.pipeline.schema import Pipeline
from permllm.runner.calibration import wished_sequences
from permllm.runs.plan import Plan
from permllm.runs.units import duration, memory

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
next tensors (:func:`permllm.runner.memory.keep_freed_memory`), with holes between them."""

GROUPS_PER_LINEAR = 0.6
"""Permutation groups for each linear: 4 for the 7 linears of a LLaMA layer, about."""


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
    plan: Plan, shape: ModelShape, number_bytes: int, saved_bytes: int, speed: float
) -> Estimate:
    """The cost of a plan.

    Args:
        plan: what is to be done.
        shape: the model's sizes.
        number_bytes: bytes of one number of the model's dtype.
        saved_bytes: of one number in exports.
        speed: floating-point operations per second, from :func:`measured_speed`.
    """
    operations = float(shape.parameters * FORWARD) * evaluation_cost(plan.pipeline, shape).tokens
    pipelines = [run.pipeline for run in plan.runs]
    operations += sum(run_operations(pipeline, shape) for pipeline in pipelines)
    training = sum(training_cost(pipeline, shape).seconds for pipeline in pipelines)
    least = PROGRAM_BYTES + number_bytes * (shape.parameters + shape.pruned)
    least += max((stream_bytes(p, shape, number_bytes) for p in pipelines), default=0)
    working = max((working_bytes(p, shape, number_bytes) for p in pipelines), default=0)
    spare = SPARE_BYTES if any(pipeline.export for pipeline in pipelines) else 0
    return Estimate(
        parameters=shape.parameters,
        runs=len(plan.runs),
        seconds=operations / speed + training + search_seconds(plan, shape),
        memory_bytes=least + working,
        least_memory_bytes=least,
        disk_bytes=sum(kept_bytes(p, shape, number_bytes, saved_bytes) for p in pipelines) + spare,
    )


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
    return Workload(calibration.sequences, calibration.length, groups)


def training_cost(pipeline: Pipeline, shape: ModelShape) -> ComponentCost:
    """Of the learner and the pruner of a run."""
    workload = workload_of(pipeline, shape)
    layers = pipeline.layers
    return layers.permutation.cost(workload) + layers.pruner.cost(workload)


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
    trained = training_cost(pipeline, shape).trained * calibration.length
    # Learning needs the dense model's outputs, once a sequence, and its own gradient.
    tokens += (2 * FORWARD + BACKWARD) * trained
    tokens += FORWARD * evaluation_cost(pipeline, shape).tokens
    return float(tokens * shape.parameters)


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
    calibration, window = pipeline.calibration, pipeline.layers.window
    layers = shape.layers if window == "all" else min(int(window), shape.layers)
    share = shape.pruned * layers // max(1, shape.layers)
    scores = 4 * share
    logits = 4 * calibration.length * shape.vocabulary
    batch = training_cost(pipeline, shape).batch
    if not batch:
        return scores + calibration.batch_size * logits
    # Transposed copies of weights and scores, masked weights, their gradients.
    copies = 4 * number_bytes * share
    kept = ACTIVATIONS * layers * batch * calibration.length * shape.hidden * number_bytes
    # The loss holds the logits of both models and a gradient.
    return int(HELD * (scores + copies + kept + 3 * batch * logits))


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
