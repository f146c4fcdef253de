"""An interruption that Python drops is raised again at the next progress report."""

from __future__ import annotations

import signal
import threading

import pytest

from permllm.cli.interrupts import interruptible
from permllm.registry import Registry


class Dropping:
    """Is interrupted while it is destroyed."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr("sys.unraisablehook", lambda told: None)
    return Registry.load()


@pytest.fixture(autouse=True)
def pythons_own_handler() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_dropped_interruption_is_raised_again(registry: Registry) -> None:
    def report(stage: str) -> None:
        registry.manager.hook.permllm_progress(run=None, stage=stage, done=0, total=1)

    with interruptible(registry):
        report("before")
        Dropping()
        with pytest.raises(KeyboardInterrupt):
            report("after")
    report("outside")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interruption_ends_the_block_at_once(registry: Registry) -> None:
    with pytest.raises(KeyboardInterrupt), interruptible(registry):
        signal.raise_signal(signal.SIGINT)


def test_other_handlers_and_threads_are_left_alone(registry: Registry) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible(registry):
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found: list[object] = []

    def elsewhere() -> None:
        with interruptible(registry):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
