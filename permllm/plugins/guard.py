"""Keeps what fails in an observer's hooks from the run that it observes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pluggy

from permllm.errors import RunFailed
from permllm.plugins.hook_checks import LIFE_CYCLE

Failed = Callable[[str, Exception], None]
"""Told of the hook that failed, and of its error."""


def guard_hooks(manager: pluggy.PluginManager, plugin: object, failed: Failed) -> None:
    """Silence a registered plugin's life-cycle hooks after the first error in one of them.

    A run may have taken hours: it goes on without an observer that breaks. What one raises
    on purpose to end the run, :class:`permllm.RunFailed`, gets through, and so does the
    user's interruption.

    Args:
        manager, plugin: the plugin and where it is registered.
        failed: called once.
    """
    guard = _Guard(failed)
    for caller in manager.get_hookcallers(plugin) or ():
        for hook in caller.get_hookimpls() if caller.name in LIFE_CYCLE else ():
            if hook.plugin is plugin and not (hook.wrapper or hook.hookwrapper):
                hook.function = guard.around(caller.name, hook.function)  # type: ignore[misc]


@attrs.define(eq=False)
class _Guard:
    """Whether one plugin has failed, for all its hooks."""

    failed: Failed
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
                self.failed(hook, error)
            return None

        return call
