"""Plugins in a run: their files are part of its record, and observers cannot lose it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import permllm
from permllm.api import run_plan
from permllm.components import Observer
from permllm.errors import RunFailed, UserError
from permllm.exporters.masked import Masked
from permllm.files import read_sealed, write_sealed
from permllm.registry import Registry
from permllm.runner.exporting import export_run
from permllm.runner.preflight.check import check_plan
from permllm.runs.events import read_events
from permllm.runs.plan import make_plan

METRIC = """\
import attrs
import permllm
from permllm.components import Metric


@attrs.frozen
class Flat(Metric):
    '''The weight's absolute value.'''

    name = "flat"

    def scores(self, weight, statistics):
        return weight.abs().float()


@permllm.hookimpl
def permllm_metrics():
    return [Flat]
"""


@attrs.frozen
class Fragile(Observer):
    """Breaks at the first window."""

    name = "fragile"

    def watch(self, out: Path, warn: Any) -> object:
        class Watcher:
            @permllm.hookimpl
            def permllm_window_finished(self, reports: Any) -> None:
                raise ConnectionError("the server is away")

        return Watcher()


def test_a_file_is_recorded_and_may_not_change_before_the_run_resumes(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "flat.py"
    file.write_text(METRIC, encoding="utf-8")
    layers = {"metric": "flat", "permutation": "none", "window": 1}
    path = write_pipeline(layers=layers, plugins=["flat.py"], evaluate=[], export=[])
    registry, out = Registry.load(), tmp_path / "out"
    run_plan(make_plan(path, registry, out=out), registry, [Fragile()])

    environment = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert environment["plugin_files"] == {str(file): digest}
    assert isinstance(environment["plugins"], dict)

    # The observer broke at the first window of two, was named once, and the run went on.
    events = read_events(out)
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert [text for text in said if "fragile" in text] == [
        "the observer 'fragile' broke in permllm_window_finished and is told nothing more: "
        "ConnectionError: the server is away"
    ]
    assert len([event for event in events if event["event"] == "window_finished"]) == 2
    assert (out / "results.json").exists()

    file.write_text(METRIC.replace("abs()", "abs().square()"), encoding="utf-8")
    again = Registry.load()
    with pytest.raises(UserError, match=r"the plugin '.*flat\.py' changed since the run in"):
        run_plan(make_plan(path, again, out=out), again, resume=True)

    # Where it is known that a run goes on, or is exported, no byte of the other code runs.
    ran = tmp_path / "ran"
    file.write_text(f"open({str(ran)!r}, 'w').close()\n{METRIC}", encoding="utf-8")
    with pytest.raises(UserError, match=r"the plugin '.*flat\.py' changed since the run") as caught:
        make_plan(path, Registry.load(), out=out, resume=True)
    assert caught.value.file == str(path)
    with pytest.raises(UserError, match=r"the plugin '.*flat\.py' changed since the run"):
        export_run(out / "runs/none", Masked(), Registry.load(), tmp_path / "to")
    assert not ran.exists()
    # Nor one that the run did not have.
    record = out / "environment.json"
    kept = read_sealed(record)
    write_sealed(record, kept | {"plugin_files": {"/elsewhere.py": digest}})
    with pytest.raises(UserError, match=r"the plugin '.*flat\.py' changed since the run"):
        export_run(out / "runs/none", Masked(), Registry.load(), tmp_path / "to")
    assert not ran.exists()
    record.unlink()
    with pytest.raises(UserError, match="no folder of a finished run"):
        export_run(out / "runs/none", Masked(), Registry.load(), tmp_path / "to")
    assert not ran.exists()


def test_prune_takes_a_mapping_with_a_file(tmp_path: Path) -> None:
    from permllm.testing.models import tiny_model
    from permllm.testing.tokenizers import byte_tokenizer

    (tmp_path / "flat.py").write_text(METRIC, encoding="utf-8")
    pipeline = {
        "pattern": "2:4",
        "plugins": [str(tmp_path / "flat.py")],
        "layers": {"metric": "flat", "permutation": "none"},
        "calibration": {"sequences": 2, "length": 16, "held_out": 0},
    }
    pruned = permllm.prune(tiny_model("llama"), byte_tokenizer(), pipeline)
    assert {layer.sparsity for layer in pruned.layers} == {0.5}


MAPPINGS = """\
import attrs
import permllm
import torch
from permllm.components import Dataset, Observer, PermutationLearner, option


@attrs.frozen
class Source(Dataset):
    '''Some words, again and again.'''

    name = "source"
    words: dict[str, str] = option(factory=dict, help="some")

    def texts(self, split):
        return iter([" ".join(self.words.values()) * 50] * 10)


@attrs.frozen
class Learner(PermutationLearner):
    '''Keeps the order.'''

    name = "learner"
    shares: dict[str, float] = option(factory=dict, help="some")

    def learn(self, window):
        return {name: torch.arange(group.channels) for name, group in window.groups.items()}


@attrs.frozen
class Watcher(Observer):
    '''Watches nothing.'''

    name = "watcher"
    where: dict[str, str] = option(factory=dict, help="some")

    def watch(self, out, warn):
        return object()


@permllm.hookimpl
def permllm_datasets():
    return [Source]


@permllm.hookimpl
def permllm_permutations():
    return [Learner]


@permllm.hookimpl
def permllm_observers():
    return [Watcher]
"""


def test_options_may_be_mappings_though_these_have_no_hash(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "mappings.py").write_text(MAPPINGS, encoding="utf-8")
    path = write_pipeline(
        plugins=["mappings.py"],
        calibration={
            "dataset": {"name": "source", "words": {"a": "some words"}},
            "sequences": 2,
            "length": 16,
        },
        layers={"permutation": {"name": "learner", "shares": {"a": 0.5}}},
        track={"watcher": {"where": {"a": "b"}}},
        evaluate=[],
        export=[],
    )
    registry = Registry.load()
    plan = make_plan(path, registry, out=tmp_path / "out")
    check_plan(plan, path)
    results = run_plan(plan, registry)
    assert not results.failed


def test_an_observer_that_watches_with_nothing_is_named() -> None:
    registry = Registry.load()
    with (
        pytest.raises(RunFailed, match=r"'fragile' watches with nothing: its watch\(\) gave None"),
        registry.observing(Fragile(), None),
    ):
        pass
