"""Windows with dense inputs: each by a process of its own, with what one process comes to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torchrun import exported, second_killed, torchrun
from transformers import AutoConfig, AutoModelForCausalLM

from permllm.files import read_sealed
from permllm.runner.all_windows import WAITING
from permllm.runs.events import read_events
from permllm.runs.windows import read_window_record

LAYERS = 5

PIPELINE = """\
permllm: 1
name: dense
model: {source: directory, path: model}
calibration:
  {dataset: {name: text, path: text.txt}, sequences: 12, length: 32, batch_size: 3, held_out: 5}
pattern: "2:4"
layers: {window: 1, inputs: dense}
matrix:
  include:
    - {layers.permutation: cp, layers.pruner: sparsegpt}
    - layers.permutation: {name: lcp, steps: 3, batch: 8, block: 16}
      layers.pruner: {name: distil, steps: 2, batch: 6}
evaluate:
  - {name: perplexity, dataset: {name: text, path: text.txt}, length: 32, max_tokens: 900}
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
layers:
  {window: 1, inputs: dense, permutation: {name: lcp, steps: 20, batch: 4, block: 16, start: none}}
export: [permuted]
track: {}
shards: 2
"""

OF_WINDOWS = ("window_started", "training_step", "window_finished")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_project: Callable[..., Path]) -> Path:
    """A folder with a tiny model of five layers, a text and pipeline files."""
    folder = tiny_project(tmp_path_factory.mktemp("dense"), PIPELINE)
    (folder / "long.yaml").write_text(LONG)
    config = AutoConfig.from_pretrained(folder / "model")
    config.num_hidden_layers, config.layer_types = LAYERS, None
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    return folder


def kept(out: Path) -> dict[str, Any]:
    """The key of every window, by which others find it, and the hashes of its tensors."""
    files = sorted(out.glob("runs/*/windows/*.safetensors"))
    assert len(files) == 2 * LAYERS
    records = {str(path.relative_to(out)): read_window_record(path) for path in files}
    return {name: (record.key, record.tensors) for name, record in records.items()}


def told(out: Path) -> list[dict[str, Any]]:
    """What observers heard of windows, without times."""
    return [
        {name: fact for name, fact in event.items() if name not in ("time", "seconds")}
        for event in read_events(out)
        if event["event"] in OF_WINDOWS
    ]


def waits(out: Path) -> int:
    """How often windows were done side by side."""
    return sum(event.get("stage") == WAITING and event["done"] == 0 for event in read_events(out))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The run's folder of one process."""
    done = torchrun(1, "-m", "permllm", "run", "tiny.yaml", "--out", "alone", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "alone"


@pytest.mark.parametrize(("count", "side_by_side"), [(2, 2), (3, 1)])
def test_each_process_has_windows_and_all_is_as_by_one(
    count: int, side_by_side: int, folder: Path, alone: Path
) -> None:
    done = torchrun(count, "-m", "permllm", "run", "tiny.yaml", "--out", f"by-{count}", cwd=folder)
    assert done.returncode == 0, done.stderr
    out = folder / f"by-{count}"
    assert waits(alone) == 0
    assert waits(out) == 2 * side_by_side
    assert exported(out) == exported(alone)
    assert told(out) == told(alone) != []
    assert kept(out) == kept(alone)
    for mine, other in zip(
        read_sealed(out / "results.json")["runs"],
        read_sealed(alone / "results.json")["runs"],
        strict=True,
    ):
        assert mine["figures"] == other["figures"]
        assert mine["layers"] == other["layers"]


def test_a_killed_one_is_named_and_others_go_on_after_all_finished_windows(folder: Path) -> None:
    whole = torchrun(1, "-m", "permllm", "run", "long.yaml", "--out", "whole", cwd=folder)
    assert whole.returncode == 0, whole.stderr
    words = ("permllm", "run", "long.yaml", "--out", "killed")

    def finished() -> int:
        return len(list(folder.glob("killed/runs/*/windows/*.safetensors")))

    killed = second_killed(*words, cwd=folder, when=lambda: finished() >= 2)
    assert killed.returncode != 0
    said = killed.stderr
    assert re.search(r"process 1 of 2 on \S+ \(process id \d+\) has ended", said), said
    assert not (folder / "killed" / "results.json").exists()
    assert finished() < LAYERS
    resumed = torchrun(
        3, "-m", "permllm", "run", "long.yaml", "--out", "killed", "--resume", cwd=folder
    )
    assert resumed.returncode == 0, resumed.stderr
    assert exported(folder / "killed") == exported(folder / "whole")


FAILS = """\
import attrs
from permllm.components import PermutationLearner
from permllm.hooks import hookimpl


@attrs.frozen
class Fails(PermutationLearner):
    '''Knows nothing of the second window.'''

    name = "fails"
    only_scores = True

    def learn(self, window):
        import torch

        assert not window.world.many
        if window.index == 1:
            raise ValueError("not this one")
        return {name: torch.arange(group.channels) for name, group in window.groups.items()}


@hookimpl
def permllm_permutations():
    return [Fails]
"""


def test_what_breaks_in_another_process_s_window_is_said_once(folder: Path) -> None:
    (folder / "fails.py").write_text(FAILS)
    text = LONG.replace("{name: lcp, steps: 20, batch: 4, block: 16, start: none}", "fails")
    (folder / "fails.yaml").write_text(text + "plugins: [fails.py]\n")
    done = torchrun(2, "-m", "permllm", "run", "fails.yaml", "--out", "fails", cwd=folder)
    assert done.returncode != 0
    assert done.stderr.count("not this one") == 1, done.stderr
    assert re.search(r"process 1 of 2 on \S+ fails:", done.stderr)
