"""``permllm export``: write a finished run's model in another format."""

from __future__ import annotations

from pathlib import Path

import click

from permllm.cli import completing
from permllm.cli.errors import debug_option, needs_prune
from permllm.cli.registry import load_registry, no_plugin_option
from permllm.printing import echo


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "specs",
    required=True,
    multiple=True,
    metavar="SPEC",
    shell_complete=completing.components("exporter"),
    help="An exporter as in a pipeline file: permuted, or '{name: sparse, dtype: bfloat16}'; "
    "may be given again.",
)
@click.option(
    "--to", type=click.Path(path_type=Path), help="The folder.  [default: RUN/exports/NAME]"
)
@no_plugin_option
@needs_prune
@debug_option
def command(run: Path, specs: tuple[str, ...], to: Path | None, no_plugin: tuple[str, ...]) -> None:
    """Write the model of RUN in another format, without pruning it again.

    RUN is the folder of one finished run, such as runs/quickstart-1/runs/lcp.
    """
    from permllm.pipeline.document import Origin
    from permllm.pipeline.parsing import parse_yaml
    from permllm.pipeline.reading import read_mapping
    from permllm.runner.exporting import export_run

    if to is not None and len(specs) > 1:
        raise click.UsageError(
            f"--to names one folder, and --format {len(specs)} formats; leave --to out, or "
            "export them one by one"
        )
    registry = load_registry(no_plugin)
    wanted = [parse_yaml(spec, Origin(setting=f"format={spec}")).data for spec in specs]
    any_model = {"model": {"source": "directory", "path": "."}, "pattern": "2:4"}
    for exporter in read_mapping(any_model | {"export": wanted}, registry).export:
        folder = to or run / "exports" / exporter.name
        export_run(run, exporter, registry, folder)
        echo(str(folder))
