"""A worker does a run with what it is told alone, or says why it cannot."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from stores import empty_store

from permllm.errors import UserError
from permllm.registry import Registry
from permllm.runner.caching.keys import own_code
from permllm.runner.caching.store import Cache
from permllm.runner.on_ray.driver import pipeline_text
from permllm.runner.on_ray.messages import Letter, Order
from permllm.runner.on_ray.worker import Forwarding, work
from permllm.runner.reporting import Event
from permllm.runs.lock import OWNER
from permllm.runs.plan import make_plan

RUN: Any = SimpleNamespace(label="a")


def test_what_a_worker_hears_goes_out_in_letters_and_none_is_needed() -> None:
    letters: list[Letter] = []
    hook = Forwarding("a", letters.append)
    hook.permllm_run_started(run=RUN, reused=False)
    hook.permllm_progress(run=None, stage="s", done=0, total=1)
    hook.permllm_warning(message="w")
    assert [len(letter.events) for letter in letters] == [1]
    hook.due = 0
    hook.permllm_warning(message="w")
    assert letters[-1].progress == Event(
        "permllm_progress", {"stage": "s", "done": 0, "total": 1}, False
    )
    assert hook.letter().events == (
        Event("permllm_run_started", {"reused": False}, True),
        Event("permllm_warning", {"message": "w"}, None),
        Event("permllm_warning", {"message": "w"}, None),
    )

    def lost(letter: Letter) -> None:
        raise ConnectionError

    broken = Forwarding("a", lost)
    broken.permllm_warning(message="w")
    assert len(broken.letter().events) == 1
    with pytest.raises(AttributeError):
        broken.something_else  # noqa: B018


@pytest.fixture
def order(write_pipeline: Callable[..., Path], tmp_path: Path) -> Order:
    """What the worker of a dense run is told."""
    registry = Registry.load()
    matrix = {"layers.permutation": ["none"]}
    path = write_pipeline(matrix=matrix, evaluate=["sparsity"], export=[])
    out = tmp_path / "out"
    out.mkdir()
    (out / OWNER).write_text("mine")
    return Order(
        pipeline=pipeline_text(make_plan(path, registry, (), out), registry),
        label="dense",
        out=str(out),
        owner=b"mine",
        cache=str(tmp_path / "cache"),
        cache_limit=10**9,
        store=None,
        witness=None,
        disabled=(),
        plugin_files={},
        threads=1,
        alike={"permllm": own_code()[:12], "number of threads": 1},
        dense=None,
        versions={},
    )


def test_a_worker_does_runs_with_what_it_is_told_alone(order: Order, tmp_path: Path) -> None:
    dense = work(order, lambda letter: None)
    assert dense.taken().figures == {"sparsity": 0.0}
    pruned = work(attrs.evolve(order, label="none", dense=dense.result), lambda letter: None)
    assert pruned.taken().figures["sparsity"] == 0.5
    names = [event.hook.removeprefix("permllm_") for event in pruned.letter.events]
    assert (names[0], names[-1]) == ("run_started", "run_finished")
    assert "window_finished" in names
    again = work(attrs.evolve(order, label="none", dense=dense.result), lambda letter: None)
    assert again.result == pruned.result
    assert again.letter.events[0].facts == {"reused": True}


def test_a_worker_that_sees_another_folder_is_refused(order: Order) -> None:
    for out, owner in ((order.out, b"another"), (order.out + "-not-there", b"mine")):
        answer = work(attrs.evolve(order, out=out, owner=owner), lambda letter: None)
        assert answer.refused
        with pytest.raises(UserError, match=rf"on {socket.gethostname()} does not see .* {out}"):
            answer.taken()


def test_a_worker_keeps_what_it_computed_in_the_store_or_is_refused(
    order: Order, tmp_path: Path
) -> None:
    store = empty_store("file", tmp_path)
    assert work(attrs.evolve(order, store=store.url), lambda letter: None).result
    assert store.sizes()["figures"][0] == 1
    answer = work(attrs.evolve(order, store="smb://host/x"), lambda letter: None)
    assert answer.refused
    with pytest.raises(UserError, match=rf"worker on {socket.gethostname()}: .* needs smb") as e:
        answer.taken()
    assert "pip install" in (e.value.hint or "")


@pytest.mark.parametrize("store", [None, "file"])
def test_a_worker_with_another_cache_is_refused(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str | None
) -> None:
    monkeypatch.setattr("permllm.runner.on_ray.worker.SEEING_SECONDS", 0.3)
    behind = store and empty_store(store, tmp_path)
    cache = Cache(Path(order.cache), store=behind or None)
    lease = cache.leases.of("study", "a" * 64)
    assert lease.asked(0, lambda whose, over: None)
    seen = attrs.evolve(order, store=behind and behind.url, witness=(lease.name, cache.leases.me))
    assert work(seen, lambda letter: None).result
    # As on a machine where something else lies at that path.
    lease.release()
    for content in (None, b"another"):
        if content is not None:
            cache.leases.place.create(lease.name, content)
        answer = work(seen, lambda letter: None)
        assert answer.refused
        with pytest.raises(UserError, match=rf"on {socket.gethostname()} has another cache at "):
            answer.taken()


@pytest.mark.parametrize("what", ["permllm", "model", "pipeline", "torch", "device"])
def test_a_worker_that_would_come_to_other_figures_is_refused(order: Order, what: str) -> None:
    answer = work(attrs.evolve(order, alike={what: "other"}), lambda letter: None)
    assert answer.refused
    with pytest.raises(UserError, match=f"has another {what} than .*, and not other"):
        answer.taken()


def test_a_plugin_file_that_is_another_there_does_not_run(order: Order, tmp_path: Path) -> None:
    path = tmp_path / "runs.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    named = order.pipeline.replace('"plugins": []', f'"plugins": ["{path}"]')
    assert named != order.pipeline
    changed = attrs.evolve(order, pipeline=named, plugin_files={str(path): "0" * 64})
    with pytest.raises(UserError, match="changed"):
        work(changed, lambda letter: None).taken()
    assert not (tmp_path / "ran").exists()
