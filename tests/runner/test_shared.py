"""What runs share is read once, and only when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from permllm.folding.constraints import Constraints
from permllm.registry import Registry
from permllm.runner import shared as module
from permllm.runner.caching.store import Cache
from permllm.runner.shared import Shared
from permllm.runs.plan import make_plan


@pytest.fixture
def shared(write_pipeline: Callable[..., Path], registry: Registry, tmp_path: Path) -> Shared:
    path = write_pipeline(matrix={"calibration.seed": [0, 1]}, layers={"permutation": "none"})
    return Shared(make_plan(path, registry, out=tmp_path / "out"), registry, Cache(tmp_path / "c"))


def test_sequences_are_read_once_for_runs_that_want_the_same(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = shared.plan.runs
    first = shared.sequences(one)
    assert shared.sequences(shared.plan.dense) is first
    second = shared.sequences(other)
    assert not bool((first.tokens == second.tokens).all())
    monkeypatch.setattr(module, "read_sequences", None)
    assert shared.sequences(one) is first
    # Another study finds them in the cache.
    again = Shared(shared.plan, shared.registry, shared.stages.cache)
    assert bool((again.sequences(other).tokens == second.tokens).all())


def test_the_model_is_loaded_when_it_is_needed(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    load = module.load
    monkeypatch.setattr(
        module, "load", lambda *args, **options: calls.append(args) or load(*args, **options)
    )
    free = shared.constraints(shared.plan.pipeline.layers)
    assert isinstance(free, Constraints)
    assert not free
    assert calls == []
    assert shared.decoder is shared.decoder
    assert shared.layout.decoder is shared.decoder
    assert len(calls) == 1
