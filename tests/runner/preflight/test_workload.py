"""What components will be given is told from the sizes of a model."""

from __future__ import annotations

from pathlib import Path

import attrs

from permllm.models.shape import ModelShape
from permllm.pipeline.reading import read_mapping
from permllm.registry import Registry
from permllm.runner.preflight.workload import (
    linears_of,
    pruned_linears,
    windows_by_all,
    workload_of,
)

SHAPE = ModelShape(
    parameters=10**6,
    pruned=10**6,
    layers=2,
    hidden=64,
    vocabulary=100,
    positions=128,
    channels={f"model.layers.{index}.{name}": 8 for index in range(2) for name in ("up", "down")},
    shapes={f"model.layers.{index}.up.weight": (16, 8) for index in range(2)},
)


def test_linears_that_are_skipped_are_not_given() -> None:
    data = {"model": {"source": "directory", "path": str(Path("model"))}, "pattern": "2:4"}
    calibration = {"sequences": 5, "length": 32}
    data |= {"layers": {"skip": ["*.down"]}, "calibration": calibration, "track": {}}
    pipeline = read_mapping(data, Registry.load())
    work = workload_of(pipeline, SHAPE)
    assert (work.sequences, work.length) == (5, 32)
    assert work.linears == ((16, 8), (16, 8))
    assert [shapes for _, shapes in pruned_linears(pipeline, SHAPE)] == [((16, 8),)] * 2


def test_experts_of_one_parameter_stand_under_its_name() -> None:
    name = "model.layers.0.experts.up"
    matrices = dict.fromkeys((name, *(f"{name}[{index}]" for index in range(4))), 128)
    shape = ModelShape(
        parameters=512, pruned=512, layers=1, hidden=8, vocabulary=10, positions=None,
        channels={}, shapes={name: (4, 16, 8)}, matrices=matrices,
    )  # fmt: skip
    assert linears_of(shape) == {name: ((16, 8),) * 4}


def test_windows_that_each_have_a_process_of_their_own_are_not_shared() -> None:
    def found(inputs: str, window: int, processes: int) -> tuple[int, int]:
        data = {"model": {"source": "directory", "path": "model"}, "pattern": "2:4"}
        data |= {"layers": {"window": window, "inputs": inputs}, "track": {}}
        pipeline = read_mapping(data, Registry.load())
        return windows_by_all(pipeline, attrs.evolve(SHAPE, layers=7), processes)

    assert found("pruned", 1, 3) == (7, 7)
    assert found("dense", 1, 3) == (7, 1)
    assert found("dense", 2, 3) == (4, 1)
    assert found("dense", 7, 3) == (1, 1)
    assert found("dense", 1, 1) == (7, 7)
