"""What the shell completes: components and plugins by name, models and runs by their files.

Click asks for it in a process of its own at every tab, so nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import click
from click.shell_completion import CompletionItem

Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def components(kind: str | None = None) -> Completion:
    """Completes names of components, of one kind or of all."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        known = [one for plugin in _plugins() for one in plugin["components"]]
        return _starting(
            incomplete,
            {one["reference"]: one["summary"] for one in known if kind in (None, one["kind"])},
        )

    return complete


def plugins(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes names of plugins."""
    return _starting(
        incomplete, {one["name"]: f"{one['distribution']} {one['version']}" for one in _plugins()}
    )


def files(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes paths, as the shell does."""
    return [CompletionItem(incomplete, type="file")]


def _plugins() -> Iterable[Mapping[str, Any]]:
    # A broken installation is nothing to tell while somebody types.
    with suppress(Exception):
        from permllm.cli.catalogue import installed

        return installed().plugins
    return ()


def _starting(incomplete: str, known: Mapping[str, str]) -> list[CompletionItem]:
    return [
        CompletionItem(name, help=text)
        for name, text in known.items()
        if name.startswith(incomplete)
    ]
