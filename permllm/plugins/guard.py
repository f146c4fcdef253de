"""Keeps what fails in an observer's hooks from the run that it observes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pluggy

from permllm.errors import RunFailed
from permllm.plugins.checks import COMPONENT_HOOKS, HOOKS
from permllm.plugins.requirements import described

LIFE_CYCLE = frozenset(HOOKS) - {*COMPONENT_HOOKS.values(), "permllm_commands"}
"""The hooks that tell observers how a run goes."""


def guard_hooks(
    manager: pluggy.PluginManager, plugin: object, who: str, distribution: str = ""
) -> None:
    """Silence a registered plugin's life-cycle hooks after the first error in one of them.

    A run may have taken hours: it goes on without an observer that breaks, with a warning.
    What one raises on purpose to end the run, :class:`permllm.RunFailed`, gets through, and
    so does the user's interruption.

    Args:
        manager, plugin: the plugin and where it is registered.
        who: what the warning calls it.
        distribution: its package, whose metadata say how to install what it misses.
    """
    broken: list[str] = []

    def guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                return None if broken else function(*arguments)
            except RunFailed:
                raise
            except Exception as error:
                broken.append(name)
                what = described(error, distribution)
                _warn(manager, plugin, f"{who} broke in {name} and is told nothing more: {what}")

        return call

    for caller in manager.get_hookcallers(plugin) or ():
        for hook in caller.get_hookimpls() if caller.name in LIFE_CYCLE else ():
            if hook.plugin is plugin and not (hook.wrapper or hook.hookwrapper):
                hook.function = guarded(caller.name, hook.function)  # type: ignore[misc]


def _warn(manager: pluggy.PluginManager, broken: object, message: str) -> None:
    """Tell the other plugins; Python's warning where none of them listens."""
    tell = manager.hook.permllm_warning
    if any(listener.plugin is not broken for listener in tell.get_hookimpls()):
        tell(message=message)
    else:
        warnings.warn(message, RuntimeWarning, stacklevel=3)
