"""Observers are led through every course, and the contract says what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from permllm.components import Observer
from permllm.hookspecs import hookimpl
from permllm.testing import check_observer


@attrs.frozen(eq=False)
class AnyObserver(Observer):
    """Watches with a given object."""

    name: ClassVar[str] = "any"
    watcher: Any

    def watch(self, out: Path, warn: Any) -> object:
        return self.watcher


class Steps:
    """Remembers the hooks that it was called through."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @hookimpl
    def permllm_training_step(self, step: int) -> None:
        self.seen.append(f"step {step}")

    @hookimpl
    def permllm_run_failed(self, run: Any) -> None:
        self.seen.append(f"{run.label} failed")

    @hookimpl
    def permllm_stage_reused(self, run: Any) -> None:
        self.seen.append(f"{run.label} reused")

    @hookimpl
    def permllm_plan_failed(self, error: BaseException) -> None:
        self.seen.append(type(error).__name__)

    @hookimpl
    def permllm_plan_finished(self, results: Any) -> None:
        self.seen.append(",".join(run.label for run in results.runs))


def test_an_observer_is_led_through_every_course() -> None:
    steps = Steps()
    check_observer(AnyObserver(steps))
    whole = ["step 1", "step 2", "step 3"] * 2 + ["dense,seed=1,seed=2"]
    around = ["seed=1 failed", "seed=2 reused", "dense,seed=1,seed=2"]
    assert steps.seen == [*whole, *around, "RuntimeError", "step 1", "KeyboardInterrupt"]


def test_bad_observers(fails) -> None:
    class Misspelt:
        @hookimpl
        def permllm_run_start(self) -> None:
            pass

    class Breaks:
        @hookimpl
        def permllm_plan_failed(self, run: Any) -> None:
            raise LookupError(run.label)

    fails(check_observer, AnyObserver(object()), "has no method with @permllm.hookimpl")
    fails(check_observer, AnyObserver(Misspelt()), "there is no hook 'permllm_run_start'")
    with pytest.raises(AttributeError, match="label"):
        check_observer(AnyObserver(Breaks()))
