"""Layers that took long are kept, quick ones are not, and writing takes little of the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from permllm.results import LayerReport
from permllm.runner import finished_layers as module
from permllm.runner.finished_layers import FinishedLayer, FinishedLayers
from permllm.runs.checkpoints import Checkpoints


@attrs.define
class Clock:
    """Time that passes when it is told to."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@attrs.define
class Work:
    """Prunes layers, each in some seconds; knows which."""

    clock: Clock
    seconds: float
    done: list[int] = attrs.field(factory=list)

    def of(self, layer: int) -> Callable[[], FinishedLayer]:
        def prune() -> FinishedLayer:
            self.done.append(layer)
            self.clock.now += self.seconds
            report = LayerReport(f"l{layer}", "g", (1, 4), "2:4", 0.7, 0.8, 0.5, 0.1)
            weights = {f"l{layer}": torch.full((1, 4), float(layer))}
            return FinishedLayer(weights, {"g": torch.ones(4)}, [report])

        return prune


def finished(folder: Path, **options: Any) -> FinishedLayers:
    layers = FinishedLayers(Checkpoints(folder, "key", lambda message: None), **options)
    layers.scores(dict)
    return layers


def test_slow_layers_are_found_again(tmp_path: Path, clock: Clock) -> None:
    first, work = finished(tmp_path), Work(clock, 20.0)
    made = [first.layer(index, work.of(index)) for index in range(3)]
    found: list[tuple[str, float]] = []
    second, again = finished(tmp_path, on_reuse=lambda *what: found.append(what)), Work(clock, 20.0)
    for index in range(4):
        layer = second.layer(index, again.of(index))
        if index < 3:
            assert torch.equal(layer.weights[f"l{index}"], made[index].weights[f"l{index}"])
            assert torch.equal(layer.norms["g"], torch.ones(4))
            assert layer.reports == made[index].reports
    assert again.done == [3]
    assert found == [(f"pruning, layer {index}", 20.0) for index in range(3)]
    assert second.seconds == 60.0


def test_quick_layers_are_not_written(tmp_path: Path, clock: Clock) -> None:
    layers, work = finished(tmp_path), Work(clock, 1.9)
    for index in range(40):
        layers.layer(index, work.of(index))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "kept"), [(25.0, 20), (50.0, 40), (5.0, 4)])
def test_writing_takes_one_percent_of_the_time(
    seconds: float, kept: int, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[float] = []

    def slow(self: Checkpoints, name: str, tensors: object, facts: object = None) -> bool:
        written.append(clock.now)
        clock.now += 0.5
        return True

    monkeypatch.setattr(Checkpoints, "keep", slow)
    layers, work = finished(tmp_path), Work(clock, seconds)
    for index in range(40):
        layers.layer(index, work.of(index))
    assert len(written) == kept
    assert 0.5 * len(written) <= 0.01 * 40 * seconds


def test_layers_that_cannot_be_written_are_not_tried_for_ever(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def full(self: Checkpoints, name: str, tensors: object, facts: object = None) -> bool:
        tried.append(name)
        return False

    monkeypatch.setattr(Checkpoints, "keep", full)
    layers, work = finished(tmp_path), Work(clock, 25.0)
    for index in range(5):
        layers.layer(index, work.of(index))
    assert tried == ["pruning, layer 0"]
    assert work.done == [0, 1, 2, 3, 4]


def test_refined_scores_that_took_long_are_kept(tmp_path: Path, clock: Clock) -> None:
    def refine() -> dict[str, torch.Tensor]:
        clock.now += 60.0
        calls.append(1)
        return {"a": torch.ones(2, 4)}

    calls: list[int] = []
    for _ in range(2):
        layers = FinishedLayers(Checkpoints(tmp_path, "key"))
        assert torch.equal(layers.scores(refine)["a"], torch.ones(2, 4))
    assert calls == [1]
    assert layers.seconds == 60.0
