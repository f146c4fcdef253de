"""The registry for a command, with its warnings said once on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
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


def plugin_lines(files: Iterable[Path], registry: Registry) -> Iterator[str]:
    """What each file adds that a pipeline file names under ``plugins:``, and its digest."""
    wanted = set(files)
    for info in registry.plugins:
        if info.file in wanted:
            adds = [f"{kind} {', '.join(names)}" for kind, names in info.components.items()]
            facts = [*adds, f"SHA-256 {info.sha256}"] if info.sha256 else [info.status]
            yield f"plugin {info.file}: {'; '.join(facts)}"
