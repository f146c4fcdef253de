"""``permllm check``: what is wrong with a pipeline file, and what it will cost."""

from __future__ import annotations

from pathlib import Path

import attrs
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
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    help="Estimate for so many processes that share the work on one machine, each with a device "
    "of its own if that has some.",
)
@click.option(
    "--network",
    type=click.FloatRange(min=0, min_open=True),
    default=50e9,
    show_default="50e9",
    metavar="B/S",
    help="Bytes per second between these: NVLink 450e9, InfiniBand 50e9, Ethernet 1.2e9.",
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
    processes: int,
    network: float,
    no_plugin: tuple[str, ...],
) -> None:
    """Find what is wrong with FILE, and estimate time, memory and disk.

    Everything is looked at that can be known without loading weights or starting a run.
    """
    from permllm.models.devices import pick_device
    from permllm.runner.preflight.check import check_plan
    from permllm.runner.preflight.machine import machine_named, this_machine
    from permllm.runs.plan import make_plan

    machine = machine_named(on) if on else None
    registry = load_registry(no_plugin)
    plan = make_plan(file, registry, settings, out)
    if processes > 1:
        machine = attrs.evolve(
            machine or this_machine(pick_device(plan.pipeline.device)),
            processes=processes,
            neighbours=processes,
            network=network,
        )
    for line in plugin_lines(plan.pipeline.plugins, registry):
        echo(line)
    checked = check_plan(plan, file, elsewhere=elsewhere or on is not None, on=machine)
    for line in checked.lines():
        echo(line)
    echo(f"{file} is fine")
