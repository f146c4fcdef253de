"""``permllm inspect``: what an export holds, linear by linear."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from permllm.cli.errors import debug_option
from permllm.printing import at_dots, console, echo, marked

if TYPE_CHECKING:
    from permllm.formats.manifest import GroupEntry, Manifest, TensorEntry

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "U8": 1, "I8": 1}


@attrs.frozen
class Row:
    """One linear of the table."""

    linear: str
    pattern: str
    shape: str
    input: str
    bytes: int


@click.command("inspect")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@debug_option
def command(directory: Path, as_json: bool) -> None:
    """Print a table of the linears in the export in DIRECTORY.

    It says of each its pattern, its shape, how its input comes in order (folded into the
    rows before, gathered at run time, or stored in the original order) and its bytes.
    """
    from permllm.formats.manifest import read_manifest

    manifest = read_manifest(directory)
    rows = [_row(manifest, group, linear) for group in manifest.groups for linear in group.linears]
    total = sum(_bytes(entry) for entry in manifest.tensors.values())
    if as_json:
        summary = {"format": manifest.format, "bytes": total, "version": manifest.version}
        click.echo(json.dumps(summary | {"linears": [attrs.asdict(row) for row in rows]}))
        return
    from rich.table import Table

    table = Table(title=marked(directory), title_justify="left")
    # Where the terminal is narrow names go on in the next line: their ends tell them apart.
    table.add_column("linear", overflow="fold")
    table.add_column("pattern", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("input", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    screen = console()
    # The others take some 40 columns.
    room = max(20, (screen.width - 40) // 2)
    for row in rows:
        read = " ".join(at_dots(word, room) for word in row.input.split())
        linear = at_dots(row.linear, room)
        table.add_row(*map(marked, (linear, row.pattern, row.shape, read, f"{row.bytes:,}")))
    screen.print(table)
    counts = {order: sum(g.order == order for g in manifest.groups) for order in _ORDERS}
    counted = ", ".join(f"{count} {order}" for order, count in counts.items())
    echo(f"{manifest.format}, {len(manifest.groups)} inputs: {counted}; {total:,} bytes in all")


_ORDERS = ("folded", "gathered", "stored")


def _row(manifest: Manifest, group: GroupEntry, linear: str) -> Row:
    where = group.order if group.order != "gathered" else f"gathered at {', '.join(group.at)}"
    pattern = group.pattern or "–"
    for name in (f"{linear}.weight", linear.partition("[")[0]):
        if name in manifest.packed:
            entry = manifest.packed[name]
            parts = [manifest.tensors[f"{name}{end}"] for end in entry.ends]
            shape, size = entry.shape, sum(map(_bytes, parts))
            pattern = f"{pattern} {entry.values}" if entry.values else pattern
            return Row(linear, pattern, " × ".join(map(str, shape)), where, size)
        if name in manifest.tensors:
            whole = manifest.tensors[name]
            return Row(linear, pattern, " × ".join(map(str, whole.shape)), where, _bytes(whole))
    return Row(linear, pattern, "–", where, 0)


def _bytes(entry: TensorEntry) -> int:
    return math.prod(entry.shape) * _BYTES.get(entry.dtype, 0)
