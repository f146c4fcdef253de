"""``permllm plugins``: what is installed, from where, what it adds and whether it loads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import click

from permllm.cli import plugins_info, plugins_new
from permllm.cli.errors import debug_option
from permllm.cli.registry import no_plugin_option


@click.group("plugins", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on standard output.")
@no_plugin_option
@debug_option
@click.pass_context
def command(context: click.Context, as_json: bool, no_plugin: tuple[str, ...]) -> None:
    """List the plugins, the built-in ones included, and what they add."""
    if context.invoked_subcommand:
        if as_json or no_plugin:
            raise click.UsageError(
                f"options go after the command: permllm plugins {context.invoked_subcommand} …"
            )
        return
    from permllm.cli.catalogue import installed

    found = installed(no_plugin)
    if as_json:
        click.echo(json.dumps(found.plugins, indent=2))
        return
    _print_table(found.plugins)
    for warning in found.warnings:
        click.echo(f"warning: {warning}")


command.add_command(plugins_info.command)
command.add_command(plugins_new.command)


def _print_table(plugins: Iterable[Mapping[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("plugin, from package", no_wrap=True, max_width=42)
    table.add_column("status", no_wrap=True)
    table.add_column("adds", overflow="fold", min_width=24)
    for plugin in plugins:
        package = f"{plugin['distribution']} {plugin['version']}".strip()
        cells = (f"{plugin['name']}\n  {package}", plugin["status"], _adds(plugin["components"]))
        table.add_row(*map(Text, cells))
    Console().print(table)


def _adds(components: Iterable[Mapping[str, Any]]) -> str:
    """``metric: wanda, ria``, a line for each kind."""
    by_kind: dict[str, list[str]] = {}
    for component in components:
        by_kind.setdefault(component["kind"], []).append(component["reference"])
    return "\n".join(f"{kind}: {', '.join(names)}" for kind, names in by_kind.items())
