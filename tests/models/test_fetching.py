"""A thread copies to the device meanwhile, and ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from threading import Event

import pytest
import torch
from torch import Tensor

from permllm.models.fetching import Fetch, fetch
from permllm.testing.device import SimulatedDevice, simulated_device
from permllm.testing.simulation import streams

HOMES = {name: torch.full((4, 2), place, dtype=torch.bfloat16) for place, name in enumerate("abc")}


@pytest.fixture
def simulated() -> Iterator[SimulatedDevice]:
    before = threading.active_count()
    with simulated_device() as device:
        yield device
        assert device.faults == []
    assert threading.active_count() == before


def copy(home: Tensor) -> Tensor:
    return home.to("cuda", non_blocking=True).float()


def test_copies_are_made_by_a_thread_and_may_be_computed_with(simulated) -> None:
    threads = set()

    def noted(home: Tensor) -> Tensor:
        threads.add(threading.current_thread())
        return copy(home)

    fetched = fetch(HOMES, noted, torch.cuda.Stream())
    copies = fetched.take()
    assert threading.main_thread() not in threads
    assert len(threads) == 1
    assert all(one.is_cuda for one in copies.values())
    for name, home in HOMES.items():
        assert torch.equal((copies[name] * 2).cpu(), home.float() * 2)
    _ended(fetched)


def test_what_cannot_be_copied_is_left_to_whoever_wants_it(simulated) -> None:
    def fails(home: Tensor) -> Tensor:
        if bool(home.any()):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return copy(home)

    fetched = fetch(HOMES, fails, torch.cuda.Stream())
    assert fetched.take() == {}
    _ended(fetched)
    del fetched
    assert simulated.live_bytes == 0


def test_nobody_waits_for_more_than_a_copy_that_is_dropped(simulated) -> None:
    begun, goes_on, made = Event(), Event(), []

    def slow(home: Tensor) -> Tensor:
        made.append(home)
        begun.set()
        goes_on.wait(60)
        return copy(home)

    fetched = fetch(HOMES, slow, torch.cuda.Stream())
    begun.wait(60)
    dropping = threading.Thread(target=fetched.drop)
    dropping.start()
    fetched.unwanted.wait(60)
    goes_on.set()
    dropping.join(60)
    assert len(made) == 1
    assert fetched.made.done()
    _ended(fetched)
    del fetched, dropping
    assert simulated.live_bytes == 0


def test_copies_wait_for_what_may_hold_their_memory(simulated, monkeypatch) -> None:
    """The device may be behind: layers that ran are gone for Python, and not for it."""
    order: list[str] = []
    monkeypatch.setattr(streams.Event, "synchronize", lambda event: order.append("waited"))

    def noted(home: Tensor) -> Tensor:
        order.append("copied")
        return copy(home)

    _ended(fetch({"a": HOMES["a"]}, noted, torch.cuda.Stream()))
    assert order == ["waited", "copied"]


def _ended(fetched: Fetch[str]) -> None:
    """Wait for the thread, which may be on its last lines."""
    fetched.made.exception()
    for thread in threading.enumerate():
        if thread.name.startswith("fetch"):
            thread.join(60)
            assert not thread.is_alive()
