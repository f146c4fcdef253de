"""``permllm plugins info``: a component, with every option."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import click

from permllm.cli.errors import debug_option
from permllm.cli.registry import no_plugin_option
from permllm.errors import UserError, did_you_mean

Found = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A component and its plugin, as ``permllm plugins --json`` prints them."""


@click.command("info")
@click.argument("name")
@no_plugin_option
@debug_option
def command(name: str, no_plugin: tuple[str, ...]) -> None:
    """Explain the component NAME (or package:NAME) and its options.

    Where several kinds or several packages have one of this name, all are explained.
    """
    from permllm.cli.catalogue import installed

    every = [
        (component, plugin)
        for plugin in installed(no_plugin).plugins
        for component in plugin["components"]
    ]
    found = [pair for pair in every if _is_called(pair, name)]
    if not found:
        known = {component["reference"] for component, _ in every}
        raise UserError(f"there is no component '{name}'", hint=did_you_mean(name, known))
    click.echo("\n\n".join("\n".join(_lines(*pair)) for pair in found))


def _is_called(found: Found, name: str) -> bool:
    from permllm.plugins.info import normal

    component, plugin = found
    package, _, bare = name.rpartition(":")
    owners = {normal(plugin["name"]), normal(plugin["distribution"])}
    return component["name"] == bare and (not package or normal(package) in owners)


def _lines(component: Mapping[str, Any], plugin: Mapping[str, Any]) -> Iterator[str]:
    package = f"{plugin['distribution']} {plugin['version']}".strip()
    yield f"{component['reference']}: {component['kind']} from {package} ({plugin['name']})"
    yield f"\n{component['description']}\n"
    if not component["options"]:
        yield "It has no options."
    for option in component["options"]:
        yield from _option_lines(option)
    for preset, options in component["presets"].items():
        values = ", ".join(f"{key}: {json.dumps(value)}" for key, value in options.items())
        yield f"  preset: {preset}"
        yield _wrapped(f"stands for {values}")


def _option_lines(option: Mapping[str, Any]) -> Iterator[str]:
    default = "required" if option["required"] else f"default {json.dumps(option['default'])}"
    limits = f"; {option['range']}" if option["range"] else ""
    yield f"  {option['name']}: {option['type']} ({default}{limits})"
    yield _wrapped(option["help"])
    if option["deprecated"]:
        yield _wrapped(f"deprecated: {option['deprecated']}")


def _wrapped(text: str) -> str:
    width = min(100, max(40, shutil.get_terminal_size().columns))
    return click.wrap_text(text, width, "      ", "      ")
