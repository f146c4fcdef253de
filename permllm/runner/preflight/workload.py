"""What the components of a run will be given, and what they say that they take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

import attrs

from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.statistics import Statistic
from permllm.distinct import distinct
from permllm.models.shape import ModelShape
from permllm.pipeline.schema import Pipeline
from permllm.runner.selection import LinearSettings, settings_of
from permllm.runner.turns import turns

GROUPS_PER_LINEAR = 0.6
"""Permutation groups for each linear: 4 for the 7 linears of a LLaMA layer, about."""

Shapes = tuple[tuple[int, int], ...]
"""``C_out, C_in`` of some linears."""


def workload_of(pipeline: Pipeline, shape: ModelShape) -> Workload:
    """What the components of a run will be given."""
    calibration = pipeline.calibration
    groups = round(GROUPS_PER_LINEAR * len(shape.channels))
    linears = tuple(chain.from_iterable(shapes for _, shapes in pruned_linears(pipeline, shape)))
    share = window_layers(pipeline, shape) / max(1, shape.layers)
    return Workload(calibration.sequences, calibration.length, groups, linears, share)


def window_layers(pipeline: Pipeline, shape: ModelShape) -> int:
    """How many layers a window has."""
    window = pipeline.layers.window
    return shape.layers if window == "all" else min(int(window), shape.layers)


def windows_by_all(pipeline: Pipeline, shape: ModelShape, processes: int) -> tuple[int, int]:
    """How many windows there are, and how many of them all processes work at together."""
    windows = math.ceil(shape.layers / window_layers(pipeline, shape))
    found = turns(windows, pipeline.layers.inputs, processes)
    return windows, windows if processes == 1 else sum(len(turn) == 1 for turn in found)


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


def evaluation_cost(pipeline: Pipeline, shape: ModelShape) -> ComponentCost:
    """Of all evaluators, on one model."""
    workload = workload_of(pipeline, shape)
    return sum((one.cost(workload) for one in pipeline.evaluate), ComponentCost())
