"""``permllm compare``: runs of several folders in one table."""

from __future__ import annotations

import json

import click

from permllm.cli import completing
from permllm.cli.errors import debug_option, needs_prune
from permllm.printing import console, echo


@click.command("compare")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, shell_complete=completing.files)
@click.option(
    "--csv",
    "as_csv",
    is_flag=True,
    help="Print comma-separated values: a line for each run, what the matrix sets as columns.",
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a Markdown table.")
@click.option("--latex", "as_latex", is_flag=True, help="Print a LaTeX table, for booktabs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@needs_prune
@debug_option
def command(
    runs: tuple[str, ...], as_csv: bool, as_markdown: bool, as_latex: bool, as_json: bool
) -> None:
    """Put runs of several folders into one table.

    RUN is the folder of a run, finished or not, or FOLDER:LABEL for one run of it. What
    keeps the rows from being comparable, such as other evaluation data, is warned of.
    """
    if as_csv + as_markdown + as_latex + as_json > 1:
        raise click.UsageError("--csv, --markdown, --latex and --json exclude each other")
    from permllm.comparing.table import latex_of, markdown_of, tables_of
    from permllm.report.across import compare, to_csv, to_json

    comparison = compare(runs)
    for warned in comparison.warnings:
        echo(f"warning: {warned.message}", err=True)
    if as_csv:
        click.echo(to_csv(comparison.rows), nl=False)
    elif as_markdown:
        echo(markdown_of(comparison.rows))
    elif as_latex:
        echo(latex_of(comparison.rows))
    elif as_json:
        click.echo(json.dumps(to_json(comparison)))
    else:
        screen = console()
        for number, table in enumerate(tables_of(comparison.rows, screen)):
            if number:
                screen.print()
            screen.print(table)
