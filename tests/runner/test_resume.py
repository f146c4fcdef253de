"""Interrupted runs go on with the same bits; folders of other pipelines are refused."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forks import Forks
from safetensors.torch import load_file

from permllm.api import run_plan
from permllm.errors import UserError
from permllm.files import read_sealed, write_sealed
from permllm.hookspecs import hookimpl
from permllm.registry import Registry
from permllm.runs.plan import make_plan

SEARCH = {"name": "cp", "rounds": 2, "steps": 2}
LCP = {"name": "lcp", "block": 8, "batch": 2, "start": SEARCH}


class StopAfter:
    """Interrupts the run after a number of finished windows."""

    def __init__(self, windows: int) -> None:
        self.left = windows

    @hookimpl
    def permllm_window_finished(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def windows_of(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in sorted(out.glob("runs/lcp/windows/*"))}


def assert_same_windows(one: Path, other: Path) -> None:
    first, second = windows_of(one), windows_of(other)
    assert first
    assert first.keys() == second.keys()
    for name, tensors in first.items():
        assert tensors.keys() == second[name].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, second[name][key]), (name, key)


def test_resumes_after_the_last_window_with_the_same_bits(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {"permutation": LCP | {"steps": 3}, "window": 1}
    path = write_pipeline(layers=layers)
    whole = Registry.load()
    uninterrupted = run_plan(make_plan(path, whole, out=tmp_path / "whole"), whole)

    broken, out = Registry.load(), tmp_path / "broken"
    broken.manager.register(StopAfter(1))
    with pytest.raises(KeyboardInterrupt):
        run_plan(make_plan(path, broken, out=out), broken)
    assert len(windows_of(out)) == 1

    again = Registry.load()
    resumed = run_plan(make_plan(path, again, out=out, resume=True), again, resume=True)
    assert_same_windows(tmp_path / "whole", out)
    assert resumed["lcp"].figures == uninterrupted["lcp"].figures
    assert json.loads((out / "results.json").read_text())["runs"][1]["label"] == "lcp"


def test_two_runs_give_equal_tensors(write_pipeline: Callable[..., Path], tmp_path: Path) -> None:
    path, registry = write_pipeline(), Registry.load()
    for name in ("one", "two"):
        run_plan(make_plan(path, registry, out=tmp_path / name), registry)
    assert_same_windows(tmp_path / "one", tmp_path / "two")


@pytest.mark.skipif(sys.platform != "linux", reason="for Linux")
def test_a_killed_process_resumes(
    write_pipeline: Callable[..., Path], tmp_path: Path, forks: Forks
) -> None:
    layers = {"permutation": LCP | {"steps": 40}, "window": 1}
    path, out = write_pipeline(layers=layers), tmp_path / "out"
    words = ["run", path, "--out", out]
    process = forks.start(*words, sketch=True)
    first = out / "runs" / "lcp" / "windows" / "000.safetensors"
    deadline = time.monotonic() + 240
    while not first.exists() and process.is_running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.kill() == -signal.SIGKILL
    assert first.exists()
    assert not (out / "results.json").exists()

    refused = forks.call(*words)
    assert refused.code == 2
    assert "--resume" in refused.printed
    done = forks.call(*words, "--resume", sketch=True)
    assert done.code == 0, done.printed
    whole = Registry.load()
    run_plan(make_plan(path, whole, out=tmp_path / "whole"), whole)
    assert_same_windows(tmp_path / "whole", out)


def test_a_folder_of_another_pipeline_is_refused(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    registry, out = Registry.load(), tmp_path / "out"
    run_plan(make_plan(write_pipeline(), registry, out=out), registry)
    other = write_pipeline(pattern="1:4")
    with pytest.raises(UserError, match="pattern") as caught:
        run_plan(make_plan(other, registry, out=out), registry, resume=True)
    assert "belongs to another pipeline" in str(caught.value)
    assert "--out" in str(caught.value)


def test_a_changed_model_is_refused(write_pipeline: Callable[..., Path], tmp_path: Path) -> None:
    path, registry, out = write_pipeline(), Registry.load(), tmp_path / "out"
    run_plan(make_plan(path, registry, out=out), registry)
    environment = out / "environment.json"
    write_sealed(environment, read_sealed(environment) | {"model_fingerprint": "another"})
    with pytest.raises(UserError, match="weights changed"):
        run_plan(make_plan(path, registry, out=out), registry, resume=True)


def test_a_folder_with_other_files_is_refused(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "letters"
    out.mkdir()
    (out / "letter.txt").write_text("dear reader")
    registry = Registry.load()
    with pytest.raises(UserError, match="no run of permllm"):
        run_plan(make_plan(write_pipeline(), registry, out=out), registry)
    assert [path.name for path in out.iterdir()] == ["letter.txt"]


def test_a_finished_study_draws_nothing_anew(
    write_pipeline: Callable[..., Path], tmp_path: Path, registry: Registry
) -> None:
    """Unless a file is gone: the report is written last, so it says that all are there."""
    path, out = write_pipeline(layers={"permutation": "none"}, export=[]), tmp_path / "out"
    run_plan(make_plan(path, registry, out=out), registry)
    pictures = {picture: picture.stat().st_mtime_ns for picture in out.rglob("plots/*.png")}
    assert pictures
    run_plan(make_plan(path, registry, out=out, resume=True), registry, resume=True)
    assert {picture: picture.stat().st_mtime_ns for picture in pictures} == pictures
    (out / "report.md").unlink()
    run_plan(make_plan(path, registry, out=out, resume=True), registry, resume=True)
    assert (out / "report.md").exists()
    assert {picture: picture.stat().st_mtime_ns for picture in pictures} == pictures
    (out / "report.md").unlink()
    gone, *others = pictures
    gone.unlink()
    run_plan(make_plan(path, registry, out=out, resume=True), registry, resume=True)
    assert gone.exists()
    assert all(picture.stat().st_mtime_ns == pictures[picture] for picture in others)
    assert (out / "report.md").exists()
