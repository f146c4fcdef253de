"""Made-up folders of runs are what permllm itself reads."""

from __future__ import annotations

from pathlib import Path

import torch

from permllm.core.permutations import is_permutation
from permllm.runs.events import read_events
from permllm.runs.reading import read_folder
from permllm.runs.windows import load_window
from permllm.testing.studies import LINEARS, Made, write_study


def test_a_finished_study_is_read_back(tmp_path: Path) -> None:
    results = write_study(tmp_path / "toy", layers=2, channels=16)
    assert read_folder(str(tmp_path / "toy")).results == results
    assert [run.label for run in results.runs] == ["dense", "none", "cp", "lcp"]
    assert len(results["lcp"].layers) == 2 * len(LINEARS)
    steps = [event for event in read_events(tmp_path / "toy") if event["event"] == "training_step"]
    assert [event["step"] for event in steps] == list(range(1, 13))


def test_orders_are_as_asked_for(tmp_path: Path) -> None:
    write_study(tmp_path, [Made("none", order="same"), Made("cp")], layers=1, channels=16)
    same, other = (
        load_window(tmp_path / "runs" / label / "windows/000.safetensors").permutations.values()
        for label in ("none", "cp")
    )
    assert all(torch.equal(order, torch.arange(16)) for order in same)
    assert all(map(is_permutation, other))
    assert not any(torch.equal(order, torch.arange(16)) for order in other)


def test_what_is_left_undone_is_missing(tmp_path: Path) -> None:
    runs = [Made("cp"), Made("lcp", result=False, windows=1)]
    write_study(tmp_path, runs, finished=False, failure=("lcp", "RunFailed"))
    assert not (tmp_path / "results.json").exists()
    assert [run.label for run in read_folder(str(tmp_path)).results.runs] == ["dense", "cp"]
    assert len(list(tmp_path.glob("runs/lcp/windows/*"))) == 1
    assert read_events(tmp_path)[-1]["error"] == "RunFailed"
