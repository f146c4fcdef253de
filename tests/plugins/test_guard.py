"""Observers that break: one warning, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

import permllm
from permllm.components import Observer
from permllm.registry import Registry

WHAT = "broke in permllm_evaluated and is told nothing more: OSError: the line is dead"


class Listener:
    """Hears warnings and the ends of evaluations."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.evaluated = 0

    @permllm.hookimpl
    def permllm_warning(self, message: str) -> None:
        self.warnings.append(message)

    @permllm.hookimpl
    def permllm_evaluated(self) -> None:
        self.evaluated += 1


class Broken:
    """Raises once it is told figures."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.told: list[str] = []

    @permllm.hookimpl
    def permllm_run_started(self) -> None:
        self.told.append("run_started")

    @permllm.hookimpl
    def permllm_evaluated(self, run: Any, figures: dict[str, float]) -> None:
        self.told.append("evaluated")
        raise self.error


@attrs.frozen
class Caller(Observer):
    """Phones."""

    name = "caller"

    def watch(self, out: Path, warn: Callable[[str], None]) -> object:
        return Broken(OSError("the line is dead"))


def registry_with(plugin: object) -> tuple[Registry, Listener]:
    registry, listener = Registry(), Listener()
    registry.add(plugin, "calls", distribution="permllm-calls", version="1.2")
    registry.add(listener, "listener")
    return registry, listener


def evaluate_twice(registry: Registry) -> None:
    for _ in range(2):
        registry.manager.hook.permllm_run_started(run=None, reused=False)
        registry.manager.hook.permllm_evaluated(run=None, figures={})


def test_a_plugin_that_raises_is_one_warning_and_is_told_nothing_more() -> None:
    broken = Broken(OSError("the line is dead"))
    registry, listener = registry_with(broken)
    evaluate_twice(registry)
    assert broken.told == ["run_started", "evaluated"]
    assert listener.evaluated == 2
    assert listener.warnings == [f"the plugin 'calls' (permllm-calls 1.2) {WHAT}"]


def test_an_observer_is_named_with_the_package_of_its_class(tmp_path: Path) -> None:
    plugin = SimpleNamespace(permllm_observers=permllm.hookimpl(lambda: [Caller]))
    registry, listener = registry_with(plugin)
    watcher = Caller().watch(tmp_path, listener.warnings.append)
    with registry.observing(Caller(), watcher):
        evaluate_twice(registry)
    registry.manager.hook.permllm_run_started(run=None, reused=False)
    assert watcher.told == ["run_started", "evaluated"]  # type: ignore[attr-defined]
    assert listener.warnings == [f"the observer 'caller' (permllm-calls 1.2) {WHAT}"]


@pytest.mark.parametrize(
    "error", [permllm.RunFailed("no more"), KeyboardInterrupt(), SystemExit(1)]
)
def test_what_ends_a_run_on_purpose_gets_through(error: BaseException) -> None:
    registry, listener = registry_with(Broken(error))
    with pytest.raises(type(error)):
        registry.manager.hook.permllm_evaluated(run=None, figures={})
    assert listener.warnings == []


def test_without_anybody_who_listens_the_warning_is_pythons() -> None:
    registry = Registry()
    registry.add(Broken(OSError("the line is dead")), "calls")
    with pytest.warns(RuntimeWarning, match=r"the plugin 'calls' \(calls\) broke in"):
        registry.manager.hook.permllm_evaluated(run=None, figures={})


def test_one_that_breaks_on_warnings_does_not_warn_itself() -> None:
    class Deaf:
        @permllm.hookimpl
        def permllm_warning(self, message: str) -> None:
            raise ValueError(message)

    registry, listener = registry_with(Deaf())
    registry.manager.hook.permllm_warning(message="look")
    assert sorted(listener.warnings)[0] == "look"
    assert len(listener.warnings) == 2
    assert "broke in permllm_warning" in sorted(listener.warnings)[1]


def test_component_hooks_are_not_silenced() -> None:
    class Both(Broken):
        @permllm.hookimpl
        def permllm_observers(self) -> list[type[Observer]]:
            return [Caller]

    registry, _ = registry_with(Both(OSError("the line is dead")))
    evaluate_twice(registry)
    assert registry.component("observer", "caller") is Caller
