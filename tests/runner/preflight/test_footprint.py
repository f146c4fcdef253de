"""What a run takes of memory, by what stays there and what visits it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from permllm.models.shape import ModelShape
from permllm.pipeline.reading import read_mapping
from permllm.registry import Registry
from permllm.runner.preflight.footprint import Footprint, Numbers, window_streams
from permllm.runner.preflight.machine import Machine

CPU = Machine("cpu", 1e11)
GPU = Machine("gpu", 1e14, bfloat16=True, device=24 * 10**9, link=25e9)
LCP = {"name": "lcp", "passes": 4, "start": "none"}


def shape(layers: int = 32) -> ModelShape:
    around, layer = 262_000_000, 202_375_168
    return ModelShape(
        parameters=around + layers * layer, pruned=layers * layer, layers=layers, hidden=4096,
        vocabulary=32_000, positions=4096,
        channels={f"model.layers.{index}.linear": 4096 for index in range(7 * layers)},
    )  # fmt: skip


def footprint(
    machine: Machine = GPU, depth: int = 32, mapped: int | None = 2, **changes: Any
) -> Footprint:
    data = {
        "model": {"source": "directory", "path": "model"},
        "pattern": "2:4",
        "layers": {"permutation": LCP, "window": "all"},
        "calibration": {"length": 1024},
        "track": {},
    }
    pipeline = read_mapping(data | changes, Registry.load())
    return Footprint(pipeline, shape(depth), Numbers(2, 2, mapped), machine)


@pytest.mark.parametrize(
    ("stream", "layers", "free", "streams"),
    [
        ("auto", 4, 2**40, False),
        ("auto", 4, 2 * 16 * 1000 - 1, True),
        ("auto", 4, 2 * 16 * 1000, False),
        ("always", 4, 2**40, True),
        ("never", 4, 1, False),
        ("always", 1, 1, False),
        ("auto", 1, 1, False),
    ],
)
def test_windows_stream_that_would_take_half_of_the_memory(
    stream: str, layers: int, free: int, streams: bool
) -> None:
    assert window_streams(1000, layers, stream, free) is streams


def test_a_streamed_window_takes_the_memory_of_a_layer_whatever_the_depth() -> None:
    resident, deeper = (footprint(depth=depth, stream="never").device for depth in (16, 32))
    assert deeper > 1.8 * resident
    few, many = (footprint(depth=depth, stream="always") for depth in (16, 32))
    # Of the logits, and of what enters each layer, is all that there is more of.
    logits, states = 32 * 64 * 0.6 * 7 * 4096, 4 * 1024 * 4096 * 2
    assert many.device - few.device == pytest.approx(16 * logits, rel=0.01)
    assert many.host - few.host == pytest.approx(16 * states, rel=0.01)
    assert many.device < 12 * 10**9 < resident


def test_auto_streams_where_the_memory_is_small() -> None:
    assert footprint().streamed
    assert not footprint(attrs.evolve(GPU, device=10**12)).streamed
    assert footprint().device == footprint(stream="always").device


DENSE = {"permutation": LCP | {"batch": 8}, "window": 1}


def test_a_process_with_a_window_of_its_own_holds_a_whole_step() -> None:
    two = attrs.evolve(GPU, processes=2)
    for inputs, batch in (("pruned", 4), ("dense", 8)):
        assert footprint(two, layers=DENSE | {"inputs": inputs}).batch == batch
    # One window for two: they share its steps.
    whole = DENSE | {"inputs": "dense", "window": "all"}
    assert footprint(two, layers=whole).batch == 4


def test_of_several_processes_the_first_alone_exports() -> None:
    found = footprint(export=["permuted"])
    assert found.host - found.host_of_others == found.exported > 0
    plain = footprint()
    assert plain.host == plain.host_of_others


def test_processes_share_the_files_of_the_model_and_of_windows() -> None:
    assert footprint().mapped == 2 * 2 * shape().pruned
    assert footprint(mapped=None).mapped == 2 * shape().pruned


def test_processes_of_a_machine_share_what_is_free_there() -> None:
    free = 17 * shape().pruned
    many = attrs.evolve(CPU, host=2 * free, neighbours=2)
    assert many.free == free
    assert attrs.evolve(many, device=5).free == 5
    assert CPU.free == 2**63


def test_the_next_layer_is_there_too_if_there_is_room_for_many() -> None:
    """A device that has no more room than what computes needs is no less enough."""
    layer = 202_375_168
    roomy = footprint(stream="always")
    full = footprint(attrs.evolve(GPU, device=roomy.busy + 8 * 2 * layer - 1), stream="always")
    assert (roomy.ahead, full.ahead) == (layer, 0)
    assert full.device == full.busy == roomy.busy
    assert roomy.device - full.device == roomy.host - full.host == 2 * layer
    just = footprint(attrs.evolve(GPU, device=roomy.busy + 8 * 2 * layer), stream="always")
    assert just.ahead == layer
    assert footprint(stream="auto").ahead == layer
    for stays in (footprint(depth=8), footprint(stream="never"), footprint(CPU, stream="always")):
        assert stays.ahead == 0


def test_a_device_takes_what_the_machine_else_would() -> None:
    host = footprint(CPU, stream="always")
    assert host.device == 0
    assert host.copied == 0
    there = footprint(stream="always")
    assert there.host < host.host
    assert there.copied > 0


def test_a_streamed_model_is_copied_twice_a_step() -> None:
    four, five = (
        footprint(
            stream="always", layers={"permutation": LCP | {"passes": passes}, "window": "all"}
        )
        for passes in (4, 5)
    )
    # A pass of 16 sequences is four steps; each copies the layers forth and back.
    assert five.copied - four.copied == 4 * 2 * 2 * shape().pruned
