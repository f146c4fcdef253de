"""Windows on disk: what is written is read back, with and without the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from permllm.errors import UserError
from permllm.results import Cost, LayerReport
from permllm.runs.windows import PrunedWindow, TrainingStep, load_window, save_window, window_path

REPORT = LayerReport("layers.0.up", "layers.0:up", (3, 4), "2:4", 0.7, 0.8, 0.5, 0.1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return window_path(tmp_path / "windows", 0)


@pytest.fixture
def window() -> PrunedWindow:
    return PrunedWindow(
        weights={"layers.0.up": torch.arange(12.0).reshape(3, 4)},
        permutations={"layers.0:up": torch.tensor([2, 0, 3, 1])},
        importance={"layers.0:up": torch.tensor([4.0, 3.0, 2.0, 1.0])},
        reports=(REPORT,),
        cost=Cost(1.5, 7),
        key="abc",
        course=(TrainingStep("pruner", 1, 2, {"loss": 0.5}),),
    )


def test_a_window_comes_back(path: Path, window: PrunedWindow) -> None:
    save_window(path, window)
    back = load_window(path)
    assert back.weights["layers.0.up"].equal(window.weights["layers.0.up"])
    assert back.permutations["layers.0:up"].equal(window.permutations["layers.0:up"])
    assert back.importance["layers.0:up"].equal(window.importance["layers.0:up"])
    assert (back.reports, back.cost, back.key) == ((REPORT,), Cost(1.5, 7), "abc")
    assert back.course == window.course


def test_weights_can_be_left_unread(path: Path, window: PrunedWindow) -> None:
    save_window(path, window)
    light = load_window(path, weights=False)
    assert light.weights == {}
    assert light.permutations["layers.0:up"].equal(window.permutations["layers.0:up"])
    assert light.importance["layers.0:up"].equal(window.importance["layers.0:up"])
    assert (light.reports, light.cost) == ((REPORT,), Cost(1.5, 7))


@pytest.mark.parametrize("weights", [True, False])
def test_other_files_are_refused(path: Path, weights: bool) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no window")
    with pytest.raises(UserError, match="is damaged"):
        load_window(path, weights=weights)
    save_file({"perm/x": torch.arange(4)}, path)
    with pytest.raises(UserError, match="is not a window of this version"):
        load_window(path, weights=weights)
