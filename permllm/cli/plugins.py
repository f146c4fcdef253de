"""``permllm plugins``: what is installed, what it adds, how it is used, and how to add more."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from permllm.cli import completing
from permllm.cli.errors import debug_option, needs_prune
from permllm.cli.registry import no_plugin_option
from permllm.commands import own, pip_install, program
from permllm.components import KINDS
from permllm.errors import UserError, did_you_mean
from permllm.printing import console, echo, longest_word, plain

Plain = Mapping[str, Any]
"""A plugin, a component or an option, as ``permllm plugins --json`` prints it."""


@click.group("plugins", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on standard output.")
@no_plugin_option
@needs_prune
@debug_option
@click.pass_context
def command(context: click.Context, as_json: bool, no_plugin: tuple[str, ...]) -> None:
    """List the plugins, the built-in ones included, and what they add."""
    if context.invoked_subcommand:
        if as_json or no_plugin:
            raise click.UsageError(
                f"options go after the command: {own('plugins', context.invoked_subcommand)} …"
            )
        return
    from permllm.cli.catalogue import installed

    catalogue = installed(no_plugin)
    if as_json:
        click.echo(json.dumps(catalogue.plugins, indent=2))
        return
    _print_table(catalogue.plugins)
    for warning in catalogue.warnings:
        echo(f"warning: {warning}")


@command.command("info")
@click.argument("name", shell_complete=completing.components())
@no_plugin_option
@needs_prune
@debug_option
def info(name: str, no_plugin: tuple[str, ...]) -> None:
    """Explain the component NAME (or package:NAME) and its options.

    Where several kinds or several packages have one of this name, all are explained.
    """
    from permllm.cli.catalogue import installed

    catalogue = installed(no_plugin)
    every = list(_components(catalogue.plugins))
    meant = [(component, plugin) for component, plugin in every if _is(name, component, plugin)]
    if not meant:
        hint = did_you_mean(name, {component["reference"] for component, _ in every})
        if lost := [_package(one) for one in catalogue.plugins if one["error"]]:
            why = own("plugins")
            hint += f"; plugins that cannot be used ({why} says why): {', '.join(lost)}"
        raise UserError(f"there is no component '{name}'", hint=hint)
    echo("\n\n".join("\n".join(_explained(*pair)) for pair in meant))


@command.command("new")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(tuple(KINDS)),
    default="metric",
    show_default=True,
    help="What the package adds.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(),
    help="The folder that it goes into.  [default: the current one]",
)
@needs_prune
@debug_option
def new(name: str, kind: str, out: Path) -> None:
    """Write a package permllm-NAME that adds a component called NAME.

    The component is a small one that works, with tests that pass: change it into yours.
    """
    from permllm.cli.catalogue import installed
    from permllm.plugins.scaffold import named, write_package

    every = _components(installed().plugins)
    taken = [(has["kind"], has["name"], _package(plugin)) for has, plugin in every]
    plugin = named(name, kind, taken)
    folder = write_package(plugin, out)
    echo(f"wrote {folder}\nnext:")
    for step in (
        shlex.join(["cd", str(folder)]),
        pip_install("-e", ".[test]"),
        program("pytest"),
        own("plugins", "info", plugin.name),
    ):
        echo(f"  {step}")


def _components(plugins: Iterable[Plain]) -> Iterator[tuple[Plain, Plain]]:
    """Every component with its plugin."""
    for plugin in plugins:
        yield from ((component, plugin) for component in plugin["components"])


def _is(name: str, component: Plain, plugin: Plain) -> bool:
    from permllm.plugins.info import normal

    package, _, bare = name.rpartition(":")
    owners = {normal(plugin["name"]), normal(plugin["distribution"])}
    return component["name"] == bare and (not package or normal(package) in owners)


def _package(plugin: Plain) -> str:
    return f"{plugin['distribution']} {plugin['version']}".strip()


def _print_table(plugins: Iterable[Plain]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    plugins = list(plugins)
    names = [f"{plugin['name']}\n  {_package(plugin)}" for plugin in plugins]
    room = max(42, longest_word(map(plain, names)) + 2)
    table.add_column("plugin, from package", overflow="fold", max_width=room)
    table.add_column("status", no_wrap=True)
    table.add_column("adds", overflow="fold", min_width=24)
    for name, plugin in zip(names, plugins, strict=True):
        cells = (name, plugin["status"], _adds(plugin["components"]))
        table.add_row(*(Text(plain(cell)) for cell in cells))
    console().print(table)


def _adds(components: Iterable[Plain]) -> str:
    """``metric: wanda, ria``, a line for each kind."""
    by_kind: dict[str, list[str]] = {}
    for component in components:
        by_kind.setdefault(component["kind"], []).append(component["reference"])
    return "\n".join(f"{kind}: {', '.join(names)}" for kind, names in by_kind.items())


def _explained(component: Plain, plugin: Plain) -> Iterator[str]:
    source = f"{component['kind']} from {_package(plugin)} ({plugin['name']})"
    yield f"{component['reference']}: {source}\n\n{component['description']}\n"
    if not component["options"]:
        yield "It has no options."
    for option in component["options"]:
        yield from _option_lines(option)
    for preset, options in component["presets"].items():
        values = ", ".join(f"{key}: {json.dumps(value)}" for key, value in options.items())
        yield f"  preset: {preset}\n" + _wrapped(f"stands for {values}")


def _option_lines(option: Plain) -> Iterator[str]:
    default = "required" if option["required"] else f"default {json.dumps(option['default'])}"
    limits = f"; {option['range']}" if option["range"] else ""
    yield f"  {option['name']}: {option['type']} ({default}{limits})"
    yield _wrapped(option["help"])
    if option["deprecated"]:
        yield _wrapped(f"deprecated: {option['deprecated']}")


def _wrapped(text: str) -> str:
    width = min(100, max(40, shutil.get_terminal_size().columns))
    return click.wrap_text(text, width, "      ", "      ")
