"""Windows, overrides, skips and shared work of the chain."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from permllm.api import run_plan
from permllm.contexts.window import Window, cut_windows
from permllm.core.patterns import Pattern, is_nm
from permllm.errors import UserError
from permllm.hookspecs import hookimpl
from permllm.registry import Registry
from permllm.report.history import training_history
from permllm.runs.events import read_events
from permllm.runs.plan import make_plan
from permllm.runs.windows import load_window

SEARCH = {"name": "cp", "rounds": 2, "steps": 2}


class Recorder:
    """Keeps what the life-cycle hooks say."""

    def __init__(self) -> None:
        self.windows: list[tuple[str, ...]] = []
        self.steps: list[dict[str, float]] = []
        self.stages: list[str] = []
        self.warnings: list[str] = []
        self.reused: list[str] = []

    @hookimpl
    def permllm_stage_reused(self, stage: str) -> None:
        self.reused.append(stage)

    @hookimpl
    def permllm_window_started(self, layers: tuple[str, ...]) -> None:
        self.windows.append(layers)

    @hookimpl
    def permllm_training_step(self, stage: str, figures: dict[str, float]) -> None:
        self.stages.append(stage)
        self.steps.append(figures)

    @hookimpl
    def permllm_warning(self, message: str) -> None:
        self.warnings.append(message)


def run(path: Path, out: Path, recorder: Recorder | None = None) -> Any:
    registry = Registry.load()
    if recorder:
        registry.manager.register(recorder)
    return run_plan(make_plan(path, registry, out=out), registry)


def test_windows_cover_the_layers_once() -> None:
    assert cut_windows(5, "all") == [range(5)]
    assert cut_windows(5, 2) == [range(0, 2), range(2, 4), range(4, 5)]
    assert cut_windows(2, 9) == [range(2)]


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_one_window_a_layer(
    inputs: str, write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {
        "permutation": {"name": "lcp", "block": 8, "steps": 2, "batch": 2, "start": SEARCH},
        "window": 1,
        "inputs": inputs,
    }
    recorder = Recorder()
    results = run(write_pipeline(layers=layers), tmp_path / "out", recorder)
    assert len(recorder.windows) >= 2
    assert all(len(layers) == 1 for layers in recorder.windows)
    assert len(recorder.steps) == 2 * len(recorder.windows)
    assert all(step["loss"] >= 0 for step in recorder.steps)
    assert "held_out_loss" in recorder.steps[1]
    assert results["lcp"].figures["sparsity"] >= 0.5


def test_overrides_and_skips(write_pipeline: Callable[..., Path], tmp_path: Path) -> None:
    layers = {
        "permutation": "cp",
        "skip": ["*.o_proj"],
        "overrides": [
            {"match": "*.down_proj", "pattern": "1:4", "metric": "magnitude"},
            {"match": "model.layers.0.mlp", "skip": True},
            {"match": "model.layers.0.mlp.down_proj", "skip": False, "pattern": "3:4"},
        ],
    }
    results = run(write_pipeline(layers=layers), tmp_path / "out")
    patterns = {layer.linear: layer.pattern for layer in results["cp"].layers}
    assert patterns["model.layers.0.mlp.down_proj"] == "3:4"
    assert patterns["model.layers.1.mlp.down_proj"] == "1:4"
    assert patterns["model.layers.1.mlp.up_proj"] == "2:4"
    assert "model.layers.0.mlp.up_proj" not in patterns
    assert not [name for name in patterns if name.endswith("o_proj")]
    window = load_window(tmp_path / "out/runs/cp/windows/000.safetensors")
    down = window.weights["model.layers.1.mlp.down_proj"]
    permutation = next(
        permutation
        for name, permutation in window.permutations.items()
        if "layers.1:mlp.down_proj" in name
    )
    assert is_nm(down[:, permutation], Pattern(1, 4))


def test_cp_keeps_more_than_none_and_all_methods_run(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    matrix = {
        "layers.permutation": ["none", "cp", "greedy"],
        "layers.pruner": ["mask", "sparsegpt"],
    }
    results = run(write_pipeline(matrix=matrix, layers={}), tmp_path / "out")
    figures = {run.label: run.figures for run in results.runs}
    assert len(figures) == 7
    for pruner in ("mask", "sparsegpt"):
        none, cp, greedy = (figures[f"{name} {pruner}"] for name in ("none", "cp", "greedy"))
        assert none["retained"] <= greedy["retained"]
        assert none["retained"] <= cp["retained"]
    for layer in results["cp mask"].layers:
        assert layer.retained >= layer.retained_before - 1e-9


def test_the_course_of_a_shared_window_is_in_every_record(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    """Of another study with the same cache, and of the steps that a loss is no number in."""
    path, cache = write_pipeline(), tmp_path / "cache"
    histories = []
    for out in (tmp_path / "first", tmp_path / "second"):
        registry = Registry.load()
        run_plan(make_plan(path, registry, out=out), registry, cache=cache)
        histories.append(training_history(read_events(out)))
        assert (out / "runs" / "lcp" / "plots" / "training.png").exists()
    assert histories[0] == histories[1]
    assert len(histories[0]["lcp"]["loss"]) == 3
    steps = [event for event in read_events(out) if event["event"] == "training_step"]
    assert all(step["replayed"] for step in steps)


def test_runs_that_differ_in_their_pruner_share_the_order(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    recorder = Recorder()
    matrix = {"layers.pruner": ["mask", "sparsegpt"]}
    run(write_pipeline(matrix=matrix), tmp_path / "out", recorder)
    # Learned once; the second run's record repeats the course.
    assert recorder.steps[:3] == recorder.steps[3:]
    assert "order (lcp), layers 0 to 1" in recorder.reused
    mask, sparsegpt = (
        load_window(tmp_path / f"out/runs/{label}/windows/000.safetensors").permutations
        for label in ("mask", "sparsegpt")
    )
    assert mask.keys() == sparsegpt.keys()
    assert all(torch.equal(permutation, sparsegpt[name]) for name, permutation in mask.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pattern": "3:7"}, "does not divide"),
        ({"layers": {"skip": ["*"]}}, "nothing is left to prune"),
        ({"layers": {"skip": ["*.o_porj"]}}, "o_proj"),
        ({"layers": {"overrides": [{"match": "*.q_proj", "pattern": "1:4"}]}}, "one pattern"),
        ({"matrix": {"device": ["cpu", "auto"]}}, "vary"),
        ({"device": "cuda:7"}, "cannot be used"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], said: str, write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run(write_pipeline(**changes), tmp_path / "out")
    assert not list((tmp_path / "out").glob("runs/*/windows/*"))


def test_experts_without_tokens_are_pruned_by_their_weights(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    calibration = {
        "dataset": {"name": "text", "path": "train.txt"},
        "sequences": 1,
        "length": 2,
        "held_out": 0,
    }
    recorder = Recorder()
    path = write_pipeline(
        "mixtral", calibration=calibration, layers={"permutation": "cp"}, evaluate=[]
    )
    results = run(path, tmp_path / "out", recorder)
    assert any("no calibration token reached" in said for said in recorder.warnings)
    experts = [layer for layer in results["cp"].layers if "experts" in layer.linear]
    assert experts
    assert all(layer.sparsity >= 0.5 for layer in experts)


def test_a_budget_without_room_for_training_is_a_warning(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    """The order that learning would start from is kept, and the user is told why."""
    learner = {"name": "lcp", "block": 8, "budget": "0.001s", "batch": 2, "start": "none"}
    recorder = Recorder()
    results = run(write_pipeline(layers={"permutation": learner}), tmp_path / "out", recorder)
    (warning,) = recorder.warnings
    assert warning.startswith("layers 0 to 1: no training: a step takes about")
    assert not recorder.steps
    assert results.runs[1].error is None


@pytest.mark.parametrize("window", ["all", 1])
def test_a_pruner_may_update_what_it_keeps(
    write_pipeline: Callable[..., Path], tmp_path: Path, window: int | str
) -> None:
    """Reports are on the updated weights, and zeros stay where they were."""
    layers: dict[str, Any] = {"permutation": SEARCH, "window": window}
    masked = run(write_pipeline(layers=layers, export=[]), tmp_path / "masked").runs[-1]
    options = {"steps": 2, "batch": 2, "learning_rate": 0.001, "select": "last"}
    layers["pruner"] = {"name": "distil", **options}
    recorder = Recorder()
    path = write_pipeline(layers=layers, export=[])
    trained = run(path, tmp_path / "trained", recorder).runs[-1]
    for one, other in zip(masked.layers, trained.layers, strict=True):
        assert one.sparsity == other.sparsity
        assert one.error != other.error
    assert recorder.stages == ["pruner"] * (2 if window == "all" else 4)
    assert masked.figures != trained.figures


def test_a_windows_tensors_go_when_it_is_done(
    write_pipeline: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, without the garbage collector: they are most of the memory of a run."""
    kept: list[weakref.ref[Window]] = []

    def watched(**attributes: Any) -> Window:
        window = Window(**attributes)
        kept.append(weakref.ref(window))
        return window

    monkeypatch.setattr("permllm.runner.window_loop.Window", watched)
    gc.disable()
    try:
        run(write_pipeline(evaluate=[], export=[]), tmp_path / "out")
        assert [window() for window in kept] == [None]
    finally:
        gc.enable()


def test_a_learner_without_anything_to_move_says_so(write_pipeline: Any, tmp_path: Path) -> None:
    layers = {"permutation": "cp", "residual": "original"}
    for skip, said in (["*.down_proj", "*.o_proj", "*.v_proj"], True), ([], False):
        recorder = Recorder()
        path = write_pipeline(layers={**layers, "skip": skip}, evaluate=[])
        run(path, tmp_path / str(said), recorder)
        told = [one for one in recorder.warnings if "no order is learned (cp)" in one]
        assert bool(told) == said, recorder.warnings


@pytest.mark.parametrize("learner", ["cp", {"name": "lcp", "block": 8, "steps": 2}])
@pytest.mark.parametrize("pruner", ["mask", "sparsegpt", {"name": "distil", "steps": 2}])
def test_a_window_of_which_everything_is_skipped_stays_dense(
    learner: Any, pruner: Any, write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {"permutation": learner, "pruner": pruner, "skip": ["model.layers.0"], "window": 1}
    path = write_pipeline("llama-gqa", layers=layers, evaluate=[])
    (result,) = run(path, tmp_path / "out").runs[1:]
    assert {one.linear.split(".")[2] for one in result.layers} == {"1"}
