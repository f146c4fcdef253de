"""What commands have to do with plugins: which are loaded, and what they add to the commands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from permllm.cli import completing
from permllm.printing import echo

if TYPE_CHECKING:
    from permllm.registry import Registry


def no_plugin_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--no-plugin NAME`` for a command, as the argument ``no_plugin``."""
    return click.option(
        "--no-plugin",
        multiple=True,
        metavar="NAME",
        shell_complete=completing.plugins,
        help="Do not load this plugin; may be given several times.",
    )(command)


def load_registry(disabled: Iterable[str], *, quiet: bool = False) -> Registry:
    """All plugins but the ``disabled`` ones; broken ones are warnings unless ``quiet``."""
    from permllm.registry import Registry

    registry = Registry.load(disabled=disabled)
    for warning in () if quiet else registry.warnings:
        _warn(warning)
    return registry


def add_plugin_commands(group: click.Group, registry: Registry, reserved: Collection[str]) -> None:
    """Let every installed plugin add its commands to ``group``, through ``permllm_commands``.

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


def plugin_lines(files: Iterable[Path], registry: Registry) -> Iterator[str]:
    """What each file adds that a pipeline file names under ``plugins:``, and its digest."""
    wanted = set(files)
    for info in registry.plugins:
        if info.file in wanted:
            adds = [f"{kind} {', '.join(names)}" for kind, names in info.components.items()]
            facts = [*adds, f"SHA-256 {info.sha256}"] if info.sha256 else [info.status]
            yield f"plugin {info.file}: {'; '.join(facts)}"


def _warn(message: str) -> None:
    echo(f"warning: {message}", err=True)
