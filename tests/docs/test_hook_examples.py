"""The examples in the docstrings of hooks run, each with what its hook is called with."""

from __future__ import annotations

import inspect
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import click
import pluggy
import pytest

import permllm
from permllm import hookspecs
from permllm.hooks import PROJECT
from permllm.testing.observers import (
    lead_around_a_failed_run,
    lead_through,
    lead_to_an_interruption,
    toy_plan,
)

HOOKS = [name for name in vars(hookspecs) if name.startswith("permllm_")]


def example(hook: str) -> str:
    """The code block of a hook's docstring."""
    docstring = inspect.getdoc(getattr(hookspecs, hook)) or ""
    _, mark, code = docstring.partition("::\n")
    assert mark, f"{hook} has no example"
    return textwrap.dedent(code)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """All hooks, implemented by their examples; whatever these import is there."""

    class Anything(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return type(name, (), {}) if name[:1].isupper() else Anything(name)

    # Their component classes stand for those of a reader.
    modules = ["power", "by_depth", "annealing", "admm", "latency", "wiki", "onnx", "slack"]
    for module in ("", *(f".{name}" for name in modules)):
        monkeypatch.setitem(sys.modules, f"my_package{module}", Anything(f"my_package{module}"))
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    for name in HOOKS:
        namespace: dict[str, Any] = {"permllm": permllm, "click": click}
        exec(example(name), namespace)
        plugin = types.SimpleNamespace(**{name: namespace[name]})
        manager.register(plugin, name=name)
    manager.check_pending()
    return manager.hook


def test_every_example_runs(hook: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    called: list[str] = []
    hook_names = set(HOOKS)
    for name in HOOKS:
        caller = getattr(hook, name)
        if not inspect.signature(getattr(hookspecs, name)).parameters:
            assert [cls.__name__ for classes in caller() for cls in classes]
            called.append(name)
    group = click.Group()
    hook.permllm_commands(group=group)
    assert group.commands
    called.append("permllm_commands")

    class Relay:
        """Notes which hooks are called."""

        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return getattr(hook, name)

    for number, lead in enumerate(
        (lead_through, lead_around_a_failed_run, lead_to_an_interruption)
    ):
        out = tmp_path / str(number)
        out.mkdir()
        lead(toy_plan(out), Relay())
    assert set(called) == hook_names
    said = capsys.readouterr().out
    assert "| method | perplexity toy |" in said
    assert "warning: model.layers.0.mlp.gate" in said
