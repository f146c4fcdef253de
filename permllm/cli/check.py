"""``permllm check``: what is wrong with a pipeline file, and what it will cost."""

from __future__ import annotations

from pathlib import Path

import click

from permllm.cli.errors import debug_option, needs_prune
from permllm.cli.registry import load_registry, no_plugin_option, plugin_lines
from permllm.printing import echo


@click.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As for `permllm run`.")
@click.option("--out", type=click.Path(path_type=Path), help="As for `permllm run`.")
@click.option(
    "--elsewhere",
    is_flag=True,
    help="It will run on another machine: too little memory or disk here is only a warning.",
)
@click.option(
    "--on",
    metavar="MACHINE",
    help="Estimate for another machine: cpu, rtx4090, a100, h100, h200, or "
    "flops=1e15,memory=80e9,link=50e9.",
)
@no_plugin_option
@needs_prune
@debug_option
def command(
    file: Path,
    settings: tuple[str, ...],
    out: Path | None,
    elsewhere: bool,
    on: str | None,
    no_plugin: tuple[str, ...],
) -> None:
    """Find what is wrong with FILE, and estimate time, memory and disk.

    Everything is looked at that can be known without loading weights or starting a run.
    """
    from permllm.runner.preflight.check import check_plan
    from permllm.runner.preflight.machine import machine_named
    from permllm.runs.plan import make_plan

    machine = None if on is None else machine_named(on)
    registry = load_registry(no_plugin)
    plan = make_plan(file, registry, settings, out)
    for line in plugin_lines(plan.pipeline.plugins, registry):
        echo(line)
    checked = check_plan(plan, file, elsewhere=elsewhere or machine is not None, on=machine)
    for line in checked.lines():
        echo(line)
    echo(f"{file} is fine")
