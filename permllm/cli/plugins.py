"""``permllm plugins``: what is installed, from where, what it adds and whether it loads."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import click

from permllm.cli.errors import debug_option
from permllm.cli.registry import load_registry, no_plugin_option
from permllm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from permllm.components import Component
    from permllm.registry import PluginInfo, Registry


@click.group("plugins", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on standard output.")
@no_plugin_option
@debug_option
@click.pass_context
def command(context: click.Context, as_json: bool, no_plugin: tuple[str, ...]) -> None:
    """List the plugins, the built-in ones included, and what they add."""
    if context.invoked_subcommand:
        return
    registry = load_registry(no_plugin, quiet=True)
    if as_json:
        click.echo(
            json.dumps([describe(plugin, registry) for plugin in registry.plugins], indent=2)
        )
    else:
        _print_table(registry.plugins)


@command.command("info")
@click.argument("name")
@debug_option
def info(name: str) -> None:
    """Explain the component NAME and its options."""
    from permllm.components import KINDS

    registry = load_registry(())
    found = [
        (kind, entry)
        for kind in KINDS
        for reference, entry in registry.components(kind).items()
        if name in (reference, entry.cls.name)
    ]
    if not found:
        known = {reference for kind in KINDS for reference in registry.components(kind)}
        raise UserError(f"there is no component '{name}'", hint=did_you_mean(name, known))
    for kind, entry in found:
        click.echo(f"{entry.cls.name}: {kind} from {entry.plugin} ({entry.plugin.name})\n")
        click.echo(f"{inspect.getdoc(entry.cls) or ''}\n")
        _print_options(entry.cls)


def describe(plugin: PluginInfo, registry: Registry) -> dict[str, Any]:
    """A plugin as plain data for ``--json``."""
    return {
        "name": plugin.name,
        "version": plugin.version,
        "distribution": plugin.distribution,
        "components": [
            {
                "kind": kind,
                "name": entry.cls.name,
                "summary": entry.cls.summary(),
                "options": options_of(entry.cls),
            }
            for kind in plugin.components
            for entry in registry.components(kind).values()
            if entry.plugin is plugin
        ],
        "status": plugin.status,
        "error": plugin.error,
    }


def options_of(cls: type[Component]) -> list[dict[str, Any]]:
    """The options of a component as plain data."""
    from permllm.pipeline.options import describe_options

    return [
        {
            "name": option.name,
            "type": option.type_text,
            "required": option.required,
            "default": option.default,
            "range": option.range,
            "help": option.help,
        }
        for option in describe_options(cls)
    ]


def _print_table(plugins: list[PluginInfo]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("plugin", "package", "status", "adds")
    for plugin in plugins:
        adds = [f"{kind}: {', '.join(names)}" for kind, names in plugin.components.items()]
        status = f"{plugin.status}: {plugin.error}" if plugin.error else plugin.status
        table.add_row(plugin.name, str(plugin), status, "\n".join(adds))
    Console().print(table)


def _print_options(cls: type[Component]) -> None:
    options = options_of(cls)
    if not options:
        click.echo("It has no options.")
    for option in options:
        default = "required" if option["required"] else f"default {json.dumps(option['default'])}"
        limits = f", {option['range']}" if option["range"] else ""
        click.echo(f"  {option['name']}: {option['type']} ({default}{limits})")
        click.echo(f"      {option['help']}")
