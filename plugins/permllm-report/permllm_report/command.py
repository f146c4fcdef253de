"""``permllm report``: the page of a run that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from permllm.errors import UserError


class LayerNumbers(click.ParamType):
    """Decoder layers, by their numbers from 0 with commas between them."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """``"0,14"`` as ``(0, 14)``."""
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() for part in parts):
            self.fail(f"{value!r} is not a list of layers such as 0,14,29", param, ctx)
        return tuple(dict.fromkeys(int(part) for part in parts))


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The file to write.  [default: report.html in RUN]",
)
@click.option(
    "--layers",
    type=LayerNumbers(),
    metavar="N,N,…",
    help="Decoder layers, from 0, whose orders are drawn.  [default: first, middle, last]",
)
def command(run: Path, out: Path | None, layers: tuple[int, ...] | None) -> None:
    """Write one self-contained HTML page about the folder RUN.

    RUN may be unfinished: the page then shows what there is.
    """
    from permllm.reporting import read_record
    from permllm_report.observer import FILE
    from permllm_report.page import write_page

    path = out or run / FILE
    record = read_record(run)
    try:
        write_page(record, path, layers)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}", hint="choose another file with --out"
        ) from error
    click.echo(path)
