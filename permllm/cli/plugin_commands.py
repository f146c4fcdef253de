"""Commands that plugins add through the hook ``permllm_commands``."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from permllm.registry import Registry


def add_plugin_commands(group: click.Group, registry: Registry, reserved: Collection[str]) -> None:
    """Let every installed plugin add its commands to ``group``.

    A plugin that breaks, or that takes the name of a built-in command, is a warning
    on standard error and nothing more.

    Args:
        group: where the commands go.
        registry: the loaded plugins; their components are not asked for, since that
            would import torch and ``permllm --help`` would take seconds.
        reserved: the built-in commands' names.
    """
    for implementation in registry.manager.hook.permllm_commands.get_hookimpls():
        plugin = implementation.plugin_name
        try:
            implementation.function(group)
        except Exception as error:
            # Someone else's code: whatever it raises must not take the command line down.
            _warn(f"the plugin '{plugin}' could not add commands: {type(error).__name__}: {error}")
        for name in sorted(set(reserved) & set(group.commands)):
            del group.commands[name]
            _warn(f"the plugin '{plugin}' wants to add the command '{name}', which is built in")


def _warn(message: str) -> None:
    click.echo(f"warning: {message}", err=True)
