"""Stages are computed once, and their results come back with their cost and course."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from permllm.runner.caching.keys import Unhashable
from permllm.runner.caching.memo import Meter, Stages
from permllm.runner.caching.store import Cache


class Work:
    """Counts how often it was done."""

    times = 0

    def __call__(self, log: list[Any]) -> dict[str, torch.Tensor]:
        self.times += 1
        log.append([1, {"loss": 0.5}])
        return {"a": torch.arange(3), "b": torch.ones(2, 3).T}


def test_tensors_are_computed_once(tmp_path: Path) -> None:
    reused: list[tuple[str, float]] = []
    stages = Stages(Cache(tmp_path), on_reuse=lambda *what: reused.append(what))
    work, key = Work(), stages.key("kind", lambda: ["of this"])
    made = stages.tensors("kind", key, work, stage="a stage")
    assert reused == []
    kept = stages.tensors("kind", key, work, stage="a stage")
    assert work.times == 1
    assert reused == [("a stage", made.cost.seconds)]
    assert (made.reused, kept.reused) == (False, True)
    assert kept.cost == made.cost
    assert list(kept.log) == list(made.log) == [[1, {"loss": 0.5}]]
    assert all(torch.equal(tensor, kept.tensors[name]) for name, tensor in made.tensors.items())


@pytest.mark.parametrize(
    "other", [{"base": "another model"}, {"rounding": "other threads"}, {"cache": None}]
)
def test_other_circumstances_share_nothing(tmp_path: Path, other: dict[str, Any]) -> None:
    stages = Stages(Cache(tmp_path))
    work = Work()
    for one in (stages, Stages(**{"cache": Cache(tmp_path)} | other)):
        one.tensors("kind", one.key("kind", lambda: ["of this"]), work, stage="a stage")
    assert work.times == 2


def test_what_cannot_be_told_apart_is_not_kept(tmp_path: Path) -> None:
    def parts() -> list[Any]:
        raise Unhashable("a lambda")

    stages, work = Stages(Cache(tmp_path)), Work()
    assert stages.key("kind", parts) is None
    for _ in range(2):
        stages.tensors("kind", None, work, stage="a stage")
    assert work.times == 2
    assert Cache(tmp_path).entries() == []


def test_figures_and_parts_are_kept_too(tmp_path: Path) -> None:
    stages = Stages(Cache(tmp_path))
    for attempt in range(2):
        figures = stages.figures("figures", "key", lambda: {"x": float(attempt)}, stage="x")  # noqa: B023
        part = stages.part("states", "key", lambda: torch.tensor(attempt))  # noqa: B023
        assert (figures, int(part)) == ({"x": 0.0}, 0)


def test_a_meter_measures_the_block() -> None:
    meter = Meter()
    assert meter.cost.seconds == 0
    with meter.running() as same:
        torch.ones(10)
    assert same is meter
    assert meter.cost.seconds > 0
