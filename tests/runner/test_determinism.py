"""Deterministic operations are taken for a block, and everything is as before after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from permllm.api import run
from permllm.runner.determinism import CUBLAS, deterministic


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, "")
    monkeypatch.delenv(CUBLAS)


@pytest.mark.parametrize("wanted", [True, False])
def test_it_holds_for_the_block_alone(wanted: bool) -> None:
    with deterministic(wanted):
        assert torch.are_deterministic_algorithms_enabled() is wanted
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_ends_where_the_block_fails() -> None:
    def fail() -> None:
        with deterministic(True):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_that_asks_for_it_gets_it(
    write_pipeline: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    path = write_pipeline(deterministic=True, evaluate=[])
    embed = torch.nn.functional.embedding

    def watch(*args: object, **options: object) -> torch.Tensor:
        found.append(torch.are_deterministic_algorithms_enabled())
        return embed(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "embedding", watch)
    (result,) = run(path, out=tmp_path / "out").runs[1:]
    assert found
    assert all(found)
    assert result.error is None
