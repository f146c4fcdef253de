"""Plans: a run for each cell, each with a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permllm.errors import UserError
from permllm.registry import Registry
from permllm.runs.plan import make_plan, shared_plan
from permllm.world import ALONE

PIPELINE = """
name: tiny
model: {source: directory, path: model}
pattern: "2:4"
matrix:
  layers.permutation: [none, cp]
  layers.pruner: [mask, sparsegpt]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., object]:
    path = tmp_path / "tiny.yaml"
    path.write_text(PIPELINE, encoding="utf-8")
    return lambda **options: make_plan(path, Registry.load(), **options)


def test_dense_comes_first_and_every_run_has_its_folder(
    plan: Callable[..., object], tmp_path: Path
) -> None:
    made = plan(out=tmp_path / "out")
    assert made.dense.label == "dense"
    assert [run.label for run in made.runs] == [
        "none mask", "none sparsegpt", "cp mask", "cp sparsegpt",
    ]  # fmt: skip
    folders = [run.directory for run in (made.dense, *made.runs)]
    assert len(set(folders)) == 5
    assert all(folder.parent == tmp_path / "out/runs" for folder in folders)
    assert made.runs[2].options["layers.pruner"] == {"name": "mask"}
    assert made.runs[2].options["layers.permutation"]["name"] == "cp"
    assert not (tmp_path / "out").exists()


def test_settings_change_the_file(plan: Callable[..., object], tmp_path: Path) -> None:
    made = plan(out=tmp_path / "out", settings=["matrix=null", "pattern=1:4"])
    (run,) = made.runs
    assert str(run.pipeline.pattern) == "1:4"
    assert run.setting == run.label


def test_a_folder_is_named_after_pipeline_and_time(
    plan: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan().out.parent == Path("runs")
    assert plan().out.name.startswith("tiny-20")
    with pytest.raises(UserError, match="no unfinished run of 'tiny'"):
        plan(resume=True)


def test_shards_are_those_of_the_file_else_of_the_processes_and_stay(
    plan: Callable[..., Any], tmp_path: Path
) -> None:
    made = plan(out=tmp_path / "out")
    assert made.sharded(1).pipeline.shards is None
    many = made.sharded(4)
    assert [run.pipeline.shards for run in (many, many.dense, *many.runs)] == [4] * 6
    said = plan(out=tmp_path / "out", settings=["shards=2"])
    assert said.sharded(4).pipeline.shards == 2
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pipeline.yaml").write_text("shards: 8\n", encoding="utf-8")
    assert made.sharded(1, resume=True).pipeline.shards == 8
    assert made.sharded(2).pipeline.shards == 2


def test_all_processes_have_the_plan_of_the_first(plan: Callable[..., Any], tmp_path: Path) -> None:
    def find() -> Any:
        return plan(out=tmp_path / "out").sharded(3)

    assert shared_plan(ALONE, find, lambda out: plan(out=out)) == find()
    assert shared_plan(ALONE, lambda: None, lambda out: plan(out=out)) is None
