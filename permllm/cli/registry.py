"""The registry for a command, with its warnings said once on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from permllm.registry import Registry


def no_plugin_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--no-plugin NAME`` for a command, as the argument ``no_plugin``."""
    return click.option(
        "--no-plugin",
        multiple=True,
        metavar="NAME",
        help="Do not load this plugin; may be given several times.",
    )(command)


def load_registry(disabled: Iterable[str], *, quiet: bool = False) -> Registry:
    """All plugins but the ``disabled`` ones; broken ones are warnings unless ``quiet``."""
    from permllm.registry import Registry

    registry = Registry.load(disabled=disabled)
    for warning in () if quiet else registry.warnings:
        click.echo(f"warning: {warning}", err=True)
    return registry
