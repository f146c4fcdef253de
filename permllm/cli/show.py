"""``permllm show``: what a pipeline file means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from permllm.cli.errors import debug_option, needs_prune
from permllm.cli.registry import load_registry, no_plugin_option, plugin_lines
from permllm.printing import echo

if TYPE_CHECKING:
    from permllm.registry import Registry


@click.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As for `permllm run`.")
@no_plugin_option
@needs_prune
@debug_option
def command(file: Path, settings: tuple[str, ...], no_plugin: tuple[str, ...]) -> None:
    """Print a pipeline FILE with every default spelled out.

    The runs of its matrix, and the plugin that each component comes from, follow as
    comments, so that the output is a pipeline file itself.
    """
    from permllm.pipeline.reading import dump_yaml, resolved
    from permllm.runs.plan import make_plan

    registry = load_registry(no_plugin)
    plan = make_plan(file, registry, settings)
    echo(dump_yaml(resolved(plan.pipeline, registry)).rstrip())
    echo(f"\n# runs: {plan.dense.label} and {len(plan.runs)} pruned")
    for run in plan.runs:
        echo(f"#   {run.label}")
    echo("\n# components:")
    # The matrix may bring components that the file itself does not use, and may replace
    # some that it does; what counts is what the runs use.
    used = {line for run in plan.runs for line in _origins(run.pipeline, registry)}
    for line in sorted(used):
        echo(f"#   {line}")
    for line in plugin_lines(plan.pipeline.plugins, registry):
        echo(f"# {line}")


def _origins(pipeline: Any, registry: Registry) -> Iterator[str]:
    """``metric wanda: from permllm 0.1.0 (permllm.metrics)`` for each component."""
    from permllm.components import KINDS, components_in

    for component in components_in(pipeline):
        kind = next(kind for kind, base in KINDS.items() if isinstance(component, base))
        plugin = registry.plugin_of(type(component))
        origin = f"{plugin} ({plugin.name})" if plugin else "this process"
        yield f"{kind} {component.name}: from {origin}"
