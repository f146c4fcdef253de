"""What is said of a failed allocation: what it was for, and what takes less room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from permllm.api import run
from permllm.errors import RunFailed
from permllm.observers.console import Console
from permllm.permutations.lcp import Lcp
from permllm.pipeline.reading import read_mapping
from permllm.registry import Registry
from permllm.runner.room import room_for, smaller

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 1 GiB")


def pipeline(registry: Registry, **changes: Any) -> Any:
    model = {"source": "directory", "path": "."}
    return read_mapping({"model": model, "pattern": "2:4", "track": {}} | changes, registry)


def test_the_message_names_what_for_how_much_and_what_to_lower(registry: Registry) -> None:
    with (
        pytest.raises(
            RunFailed,
            match=r"^out of memory in pruning, layers 0 to 3: 2\.50 GiB were asked for; less room "
            r"is taken by stream: always, a smaller layers\.window \(it is all\), recompute: ",
        ),
        room_for("pruning, layers 0 to 3", pipeline(registry, layers={"window": "all"}), 4),
    ):
        raise FULL


def test_other_errors_are_left_as_they_are(registry: Registry) -> None:
    error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError) as caught, room_for("pruning", pipeline(registry)):
        raise error
    assert caught.value is error


def test_only_what_would_help_is_named(registry: Registry) -> None:
    lean = {
        "dtype": "bfloat16",
        "layers": {"permutation": {"name": "lcp", "recompute": True, "precision": "bfloat16"}},
        "calibration": {"batch_size": 1, "length": 64, "sequences": 9},
        "stream": "always",
    }
    assert smaller(pipeline(registry, **lean), 1) == [
        "shorter calibration.length (it is 64)",
        "fewer calibration.sequences (there are 9)",
    ]


def test_a_run_without_room_in_its_second_window_goes_on_there(
    write_pipeline: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {"window": 1, "permutation": {"name": "lcp", "block": 8, "steps": 3, "batch": 2}}
    path, out = write_pipeline(layers=layers), tmp_path / "out"
    whole = run(path, out=tmp_path / "whole")
    learn, windows = Lcp.learn, []

    def fails_in_the_second(self: Lcp, window: Any) -> Any:
        windows.append(window.index)
        if window.index == 1:
            raise FULL
        return learn(self, window)

    with monkeypatch.context() as patch:
        patch.setattr(Lcp, "learn", fails_in_the_second)
        with pytest.raises(
            RunFailed, match=r"out of memory in learning the order \(lcp\), layer 1"
        ):
            run(path, out=out, observers=[Console()])
    assert windows == [0, 1]
    again = run(path, out=out, resume=True)
    assert again["lcp"].figures == whole["lcp"].figures
