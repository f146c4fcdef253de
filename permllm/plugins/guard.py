"""Keeps what fails in an observer's hooks from the run that it observes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import attrs
import pluggy

from permllm.errors import RunFailed
from permllm.plugins.hook_checks import LIFE_CYCLE
from permllm.plugins.requirements import described


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
    guard = _Guard(manager, plugin, who, distribution)
    for caller in manager.get_hookcallers(plugin) or ():
        for hook in caller.get_hookimpls() if caller.name in LIFE_CYCLE else ():
            if hook.plugin is plugin and not (hook.wrapper or hook.hookwrapper):
                hook.function = guard.around(caller.name, hook.function)  # type: ignore[misc]


@attrs.define(eq=False)
class _Guard:
    """Whether one plugin has failed, for all its hooks."""

    manager: pluggy.PluginManager
    plugin: object
    who: str
    distribution: str
    silent: bool = False

    def around(self, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The hook's implementation without its errors."""

        def call(*arguments: Any) -> Any:
            if self.silent:
                return None
            try:
                return function(*arguments)
            except RunFailed:
                raise
            except Exception as error:
                self.silent = True
                what = described(error, self.distribution)
                self.warn(f"{self.who} broke in {hook} and is told nothing more: {what}")
            return None

        return call

    def warn(self, message: str) -> None:
        """Tell the other plugins; Python's warning where none of them listens."""
        tell = self.manager.hook.permllm_warning
        if any(listener.plugin is not self.plugin for listener in tell.get_hookimpls()):
            tell(message=message)
        else:
            warnings.warn(message, RuntimeWarning, stacklevel=3)
