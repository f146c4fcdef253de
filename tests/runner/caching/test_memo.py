"""Stages are computed once, and their results come back with their cost and course."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from permllm.runner.caching.keys import Unhashable
from permllm.runner.caching.memo import Meter, Stages
from permllm.runner.caching.store import Cache, content_hash


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
        part = stages.part("states", "key", lambda: torch.tensor(attempt), 1)  # noqa: B023
        assert (figures, int(part)) == ({"x": 0.0}, 0)


@pytest.mark.parametrize(("parts", "times"), [(4, 1), (5, 2)])
def test_parts_that_would_fill_the_cache_are_made_each_time(
    tmp_path: Path, parts: int, times: int
) -> None:
    stages = Stages(Cache(tmp_path, limit=16_000))
    made: list[torch.Tensor] = []

    def make() -> torch.Tensor:
        made.append(torch.zeros(250))  # 1000 bytes
        return made[-1]

    for _ in range(2):
        assert stages.part("states", "key", make, parts).shape == (250,)
    assert len(made) == times


def forge(path: Path, content: bytes) -> None:
    """Put other content in the place of an entry, as if it had been written so."""
    path.unlink()
    key, _, suffix = path.name.split(".")
    written = path.with_name("x")
    written.write_bytes(content)
    written.rename(path.with_name(f"{key}.{content_hash(written)}.{suffix}"))


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"[]", b"\xff", b"{}", b'{"figures": 3, "seconds": 1}',
     b'{"figures": {"a": "b"}, "seconds": 1}', b'{"figures": {}, "seconds": null}',
     b'{"figures": {"a": ' + b"9" * 5000 + b'}, "seconds": 1}', b"[" * 10**5],
)  # fmt: skip
def test_figures_that_no_stage_wrote_are_computed_again(tmp_path: Path, content: bytes) -> None:
    said: list[str] = []
    stages = Stages(Cache(tmp_path, warn=said.append))
    figures = {"a": 1.5}
    assert stages.figures("figures", "a" * 64, lambda: figures, stage="one") == figures
    path = stages.entry("figures", "a" * 64)
    assert path is not None
    forge(path, content)
    assert stages.figures("figures", "a" * 64, lambda: figures, stage="one") == figures
    assert ["is damaged (" in one for one in said] == [True]
    # It is gone, and does not stand in the way again.
    assert stages.figures("figures", "a" * 64, dict, stage="one") == figures
    assert len(said) == 1


@pytest.mark.parametrize(
    "metadata",
    [{"cost": "{"}, {"cost": "[1]"}, {"cost": '{"seconds": "a"}'}, {"log": "3"}, {"log": "[" * 99}],
)
def test_tensors_whose_record_no_stage_wrote_are_computed_again(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    said: list[str] = []
    stages, work, key = Stages(Cache(tmp_path, warn=said.append)), Work(), "a" * 64
    stages.tensors("states", key, work, stage="one")
    path = stages.entry("states", key)
    assert path is not None
    forge(path, save({"a": torch.arange(3)}, metadata=metadata))
    assert not stages.tensors("states", key, work, stage="one").reused
    assert (work.times, len(said)) == (2, 1)
    assert stages.tensors("states", key, work, stage="one").reused
    # Another's tensors are no part.
    assert stages.part("states", key, lambda: torch.ones(1), 1).equal(torch.ones(1))


def test_a_meter_measures_the_block() -> None:
    meter = Meter()
    assert meter.cost.seconds == 0
    with meter.running() as same:
        torch.ones(10)
    assert same is meter
    assert meter.cost.seconds > 0
