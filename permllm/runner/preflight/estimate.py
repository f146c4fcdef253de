"""What a plan will cost, estimated before anything is loaded.

Time is floating-point operations over the speed of a short matrix product on this
machine; memory is the sum of the large tensors that are alive at once. Both are rough
and are meant to tell minutes from hours and fits from does not fit.
"""

from __future__ import annotations

import attrs

from permllm.distinct import distinct
from permllm.formats.export_files import SPARE_BYTES
from permllm.models.shape import ModelShape
from permllm.pipeline.schema import Pipeline
from permllm.runner.preflight.footprint import Footprint, Numbers, kept_bytes
from permllm.runner.preflight.machine import Machine
from permllm.runner.preflight.workload import (
    GROUPS_PER_LINEAR,
    evaluation_cost,
    pruned_linears,
    pruning_cost,
    statistics_of,
    training_cost,
    windows_by_all,
    workload_of,
)
from permllm.runs.plan import Plan
from permllm.units import duration, memory

FORWARD, BACKWARD = 2, 4
"""Floating-point operations per parameter and token."""

PROGRAM_SECONDS = 7.0
"""To import everything, and to draw the plots at the end."""

OPENING, EXPORTING = 15e-9, 20e-9
"""Seconds per parameter to read, trace and look at a model; and to write one, hash it, read it back
and compare it. Files and memory set the pace, so a faster device changes little."""


@attrs.frozen
class Estimate:
    """What a plan will cost.

    Attributes:
        parameters: of the model.
        runs: pruned runs.
        seconds: all runs, evaluation included.
        memory_bytes: at the peak, of the machine's own memory, by the first process.
        least_memory_bytes: what it needs of that in any case: the weights, dense and pruned.
        disk_bytes: of the run's folder, with what exports want to be left on the disk.
        device_bytes: at the peak, of the device's memory; 0 where the machine itself computes.
        copied_bytes: that go from the machine's memory to the device.
        streamed: whether layers visit the device to run, of any run.
        processes: that share the work.
        exchange_seconds: of the time, what processes take to add up gradients.
        neighbours: how many of the processes have the machine's own memory in common.
        other_memory_bytes: at the peak, of that memory, by each process but the first.
        mapped_bytes: of files that they have in common, beside that.
    """

    parameters: int
    runs: int
    seconds: float
    memory_bytes: int
    least_memory_bytes: int
    disk_bytes: int
    device_bytes: int = 0
    copied_bytes: int = 0
    streamed: bool = False
    processes: int = 1
    exchange_seconds: float = 0.0
    neighbours: int = 1
    other_memory_bytes: int = 0
    mapped_bytes: int = 0

    @property
    def together_bytes(self) -> int:
        """Of the machine's own memory, by all processes that have it in common."""
        return self.memory_bytes + (self.neighbours - 1) * self.other_memory_bytes

    @property
    def time(self) -> str:
        """The time, no finer than an estimate can tell: ``8 min``."""
        unit = 60 if self.seconds >= 120 else 10 if self.seconds >= 20 else 1
        return duration(unit * max(1, round(self.seconds / unit)))

    def summary(self) -> str:
        """One line: ``about 8 min 20 s, 2.1 GiB of memory and 1.6 GiB of disk``."""
        device = f"{memory(self.device_bytes)} of the device's memory, " * bool(self.device_bytes)
        copied = f", {memory(self.copied_bytes)} copied to the device" * bool(self.copied_bytes)
        each = f" for each of {self.processes} processes" * (self.processes > 1)
        adding = f", {self.exchange_seconds:.1f} s of the time to add up gradients"
        adding *= self.exchange_seconds > 0
        return (
            f"about {self.time}, {device}{memory(self.memory_bytes)} of memory{each} "
            f"and {memory(self.disk_bytes)} of disk{copied}{adding}"
        )

    def together(self) -> str:
        """One line on the memory of several processes of a machine; empty where there is one."""
        if self.neighbours == 1:
            return ""
        return (
            f"{self.neighbours} processes on one machine: about {memory(self.together_bytes)} of "
            f"memory together, beside {memory(self.mapped_bytes)} of files that they share"
        )

    def to_dict(self) -> dict[str, float]:
        """Plain data for JSON."""
        return attrs.asdict(self)


def estimate(plan: Plan, shape: ModelShape, numbers: Numbers, machine: Machine) -> Estimate:
    """The cost of a plan.

    Args:
        plan: what is to be done.
        shape: the model's sizes.
        numbers: their bytes.
        machine: where.
    """
    operations = float(shape.parameters * FORWARD) * evaluation_cost(plan.pipeline, shape).tokens
    pipelines = [run.pipeline for run in plan.runs]
    operations /= machine.processes
    operations += sum(run_operations(pipeline, shape, machine.processes) for pipeline in pipelines)
    training = sum(training_cost(pipeline, shape).seconds for pipeline in pipelines)
    # Searches of pruners: what a run's learner searches is counted by search_seconds.
    training += sum(pruning_cost(pipeline, shape).search_seconds for pipeline in pipelines)
    takes = [Footprint(pipeline, shape, numbers, machine) for pipeline in pipelines]
    copied = sum(one.copied for one in takes)
    spare = SPARE_BYTES if any(pipeline.export for pipeline in pipelines) else 0
    searching = search_seconds(plan, shape)
    exports = sum(len(pipeline.export) for pipeline in pipelines)
    files = PROGRAM_SECONDS + shape.parameters * (OPENING + EXPORTING * exports)
    exchanging = sum(exchange_seconds(pipeline, shape, machine) for pipeline in pipelines)
    return Estimate(
        parameters=shape.parameters,
        runs=len(plan.runs),
        seconds=operations / machine.speed
        + searching / machine.processes
        + copied / machine.link
        + training
        + exchanging
        + files,
        memory_bytes=max((one.host for one in takes), default=0),
        least_memory_bytes=max((one.least for one in takes), default=0),
        disk_bytes=sum(kept_bytes(p, shape, numbers.computed, numbers.saved) for p in pipelines)
        + spare,
        device_bytes=max((one.device for one in takes), default=0),
        copied_bytes=copied,
        streamed=any(one.streamed for one in takes),
        processes=machine.processes,
        exchange_seconds=exchanging,
        neighbours=machine.neighbours,
        other_memory_bytes=max((one.host_of_others for one in takes), default=0),
        mapped_bytes=max((one.mapped for one in takes), default=0),
    )


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


def exchange_seconds(pipeline: Pipeline, shape: ModelShape, machine: Machine) -> float:
    """What processes take to add up the gradients of all training steps that they share.

    Each sends and receives all of them but its own share, to be added up and then as their sums.
    """
    _, windows = windows_by_all(pipeline, shape, machine.processes)
    seconds = 0.0
    workload = workload_of(pipeline, shape)
    for cost in (pipeline.layers.permutation.cost(workload), pruning_cost(pipeline, shape)):
        steps = windows * cost.trained / max(1, cost.batch)
        sent = 2 * cost.gradients * (1 - 1 / machine.processes)
        seconds += steps * sent / machine.network
    return seconds


def run_operations(pipeline: Pipeline, shape: ModelShape, processes: int = 1) -> float:
    """Floating-point operations of a process that prunes and evaluates one model with others."""
    calibration = pipeline.calibration
    asked = calibration.sequences * calibration.length
    # Statistics, the error of each linear and the inputs of later windows.
    tokens = float(FORWARD * 3 * asked)
    if any(settings.pruner.sequential for settings, _ in pruned_linears(pipeline, shape)):
        # Its statistics, and the inputs of the next layer.
        tokens += FORWARD * 2 * asked
    cost = training_cost(pipeline, shape)
    # Learning needs the dense model's outputs, once a sequence, and its own gradient.
    # More processes than a step has sequences do not help, but where each has its own windows.
    windows, by_all = windows_by_all(pipeline, shape, processes)
    alike = processes / min(processes, max(1, cost.batch))
    alike = 1 + (alike - 1) * by_all / max(1, windows)
    tokens += (2 * FORWARD + BACKWARD) * cost.trained * calibration.length * alike
    if allocation := pipeline.layers.allocation:
        tokens += FORWARD * allocation.cost(workload_of(pipeline, shape)).tokens
    tokens += FORWARD * (cost.tokens + evaluation_cost(pipeline, shape).tokens)
    sums = sum(
        2 * asked * c_in**2 * GROUPS_PER_LINEAR
        for statistic, c_in, _ in statistics_of(pipeline, shape)
        if statistic.channel_axes > 1
    )
    return (tokens * shape.parameters + sums) / processes + cost.operations
