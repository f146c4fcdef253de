"""``permllm plugins new``: the package of a new plugin."""

from __future__ import annotations

from pathlib import Path

import click

from permllm.cli.errors import debug_option
from permllm.components import KINDS


@click.command("new")
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
@debug_option
def command(name: str, kind: str, out: Path) -> None:
    """Write a package permllm-NAME that adds a component called NAME.

    The component is a small one that works, with tests that pass: change it into yours.
    """
    from permllm.cli.catalogue import installed
    from permllm.plugins.scaffold import named, write_package

    taken = [
        (component["kind"], component["name"], f"{plugin['distribution']} {plugin['version']}")
        for plugin in installed().plugins
        for component in plugin["components"]
    ]
    plugin = named(name, kind, taken)
    folder = write_package(plugin, out)
    click.echo(f"wrote {folder}\nnext:")
    for line in (
        f"cd {folder}",
        "pip install -e '.[test]'",
        "pytest",
        f"permllm plugins info {plugin.name}",
    ):
        click.echo(f"  {line}")
