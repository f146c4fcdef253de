"""``torchrun … -m permllm run``: several processes do what one does, to the bit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from torchrun import exported, second_killed, torchrun

from permllm.cli.processes import processes
from permllm.cli.run import _idle
from permllm.files import read_sealed
from permllm.registry import Registry
from permllm.runs.plan import make_plan
from permllm.world import World

PIPELINE = """\
permllm: 1
name: shared
model: {source: directory, path: model}
calibration:
  {dataset: {name: text, path: text.txt}, sequences: 12, length: 32, batch_size: 3, held_out: 5}
pattern: "2:4"
layers: {window: 1, allocation: {name: sensitivity, sequences: 2}}
matrix:
  include:
    - {layers.permutation: cp, layers.pruner: sparsegpt}
    - layers.permutation: {name: lcp, steps: 3, batch: 8, block: 16}
      layers.pruner:
        {name: distil, steps: 2, batch: 6, mask: {name: learned-mask, steps: 2, batch: 8}}
evaluate:
  - {name: perplexity, dataset: {name: text, path: text.txt}, length: 32, max_tokens: 900}
  - {name: choices, path: questions.jsonl}
  - fidelity
export: [permuted]
track: {}
shards: 4
"""

LONG = """\
permllm: 1
name: long
model: {source: directory, path: model}
calibration: {dataset: {name: text, path: text.txt}, sequences: 8, length: 32, held_out: 2}
pattern: "2:4"
layers: {window: 1, permutation: {name: lcp, steps: 40, batch: 4, block: 16, start: none}}
export: [permuted]
track: {}
shards: 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_project: Callable[..., Path]) -> Path:
    """A folder with a tiny model, a text, questions and pipeline files."""
    folder = tiny_project(tmp_path_factory.mktemp("shared"), PIPELINE)
    (folder / "long.yaml").write_text(LONG)
    questions = (
        {"query": f"The {word} fox jumps", "choices": ["over it", "under", "again"], "gold": 0}
        for word in ("quick", "brown", "lazy", "very lazy")
    )
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    (folder / "questions.jsonl").write_text(lines)
    return folder


def course(out: Path) -> list[object]:
    """The figures of every training step."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [(one["step"], one["figures"]) for one in events if "step" in one]


@pytest.fixture(scope="module")
def alone(folder: Path, permllm) -> Path:
    """The run's folder of one process."""
    done = permllm("run", "tiny.yaml", "--out", "alone", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "alone"


@pytest.mark.parametrize("count", [2, 4])
def test_figures_traces_and_exports_are_those_of_one_process(
    count: int, folder: Path, alone: Path
) -> None:
    words = ("-m", "permllm", "run", "tiny.yaml", "--json", "--out", f"by-{count}")
    done = torchrun(count, *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    # One speaks for all.
    said = json.loads(done.stdout)
    assert [run["label"] for run in said["runs"]] == ["dense", "cp sparsegpt", "lcp distil"]
    assert done.stderr.count("checking tiny.yaml") == 1
    out = folder / f"by-{count}"
    assert exported(out) == exported(alone)
    assert course(out) == course(alone) != []
    for mine, other in zip(
        read_sealed(out / "results.json")["runs"],
        read_sealed(alone / "results.json")["runs"],
        strict=True,
    ):
        assert mine["figures"] == other["figures"]
        assert mine["layers"] == other["layers"]


def test_one_that_is_killed_ends_all_and_is_named_and_one_goes_on_to_the_same_bits(
    folder: Path, permllm
) -> None:
    whole = permllm("run", "long.yaml", "--out", "whole", cwd=folder)
    assert whole.returncode == 0, whole.stderr
    words = ("permllm", "run", "long.yaml", "--out", "killed")
    first = "killed/runs/*/windows/000.safetensors"
    killed = second_killed(*words, cwd=folder, when=lambda: any(folder.glob(first)))
    assert killed.returncode != 0
    said = killed.stderr
    assert re.search(r"process 1 of 2 on \S+ \(process id \d+\) has ended", said), said
    assert "--out killed --resume" in said
    assert not (folder / "killed" / "results.json").exists()
    resumed = permllm("run", "long.yaml", "--out", "killed", "--resume", cwd=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert exported(folder / "killed") == exported(folder / "whole")


def test_shards_are_those_of_the_processes_that_began_and_stay(folder: Path, permllm) -> None:
    (folder / "none.yaml").write_text(
        LONG.replace("shards: 2\n", "").replace("name: lcp, steps: 40", "name: lcp, steps: 2")
    )
    done = torchrun(2, "-m", "permllm", "run", "none.yaml", "--out", "two", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "shards: 2" in (folder / "two" / "pipeline.yaml").read_text()
    # It is the same pipeline, in whatever number of processes it goes on.
    again = permllm("run", "none.yaml", "--out", "two", "--resume", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "done before" in again.stderr or "reused" in again.stderr or "kept" in again.stderr


def test_a_pipeline_that_differs_is_refused_once(folder: Path) -> None:
    script = folder / "differs.py"
    script.write_text(
        "import os, sys\n"
        "from permllm.cli.main import main\n"
        "seed = ['--set', 'seed=1'] if os.environ['RANK'] == '1' else []\n"
        "main(['run', 'long.yaml', '--out', 'differs', *seed])\n"
    )
    done = torchrun(2, script, cwd=folder)
    assert done.returncode != 0
    assert done.stderr.count("process 1 of 2 on") == 1, done.stderr
    assert "has another pipeline than the first one" in done.stderr


def test_more_processes_than_shards_are_said_to_be_idle(folder: Path) -> None:
    plan = make_plan(folder / "tiny.yaml", Registry.load(), out=folder / "never")
    (said,) = _idle(plan, World(0, 6))
    assert said.startswith("of 6 processes, 2 have no part of the calibration text")
    assert list(_idle(plan, World(0, 4))) == []
    # Those have windows of their own.
    dense = make_plan(
        folder / "tiny.yaml", Registry.load(), ["layers.inputs=dense"], out=folder / "never"
    )
    assert list(_idle(dense, World(0, 6))) == []


def test_what_one_finds_wrong_before_all_begin_is_said_once(folder: Path) -> None:
    done = torchrun(2, "-m", "permllm", "run", "no-such.yaml", cwd=folder)
    assert done.stderr.count("no-such.yaml") == 1, done.stderr
    assert done.stderr.count("Traceback") == 1  # torchrun's own


def test_without_others_nothing_is_met_and_nobody_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(World, "ended", lambda self: pytest.fail("there are no others"))

    def interrupted() -> None:
        with processes() as world:
            assert world.size == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
