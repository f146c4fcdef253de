"""``permllm cache``: what a cache holds, whether it is whole, and making room in it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from permllm.cli.errors import debug_option, needs_prune
from permllm.errors import RunFailed, UserError
from permllm.printing import console, echo, marked
from permllm.redaction import redacted

if TYPE_CHECKING:
    from permllm.runner.caching.store import Cache


class CachePlace(click.Path):
    """A folder, or the URL of a store, which stays as it is."""

    name = "folder or URL"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """The path, or the URL."""
        return value if "://" in str(value) else super().convert(value, parameter, context)


folder_argument = click.argument("folder", type=CachePlace(path_type=Path))


@click.group("cache")
@debug_option
def command() -> None:
    """Look after the cache of `permllm run --cache`, or the one in a run's folder.

    What lies in a store can be listed; it is removed by the rules of the store.
    """


@command.command("list")
@folder_argument
@needs_prune
@debug_option
def list_entries(folder: Path | str) -> None:
    """Show how many entries of each kind there are, their size and their last use."""
    from rich.table import Table

    if isinstance(folder, str):
        _list_store(folder)
        return
    entries = _open(folder).entries()
    table = Table("kind", "entries", "size", "last used")
    for kind in sorted({entry.kind for entry in entries}):
        own = [entry for entry in entries if entry.kind == kind]
        used = datetime.fromtimestamp(max(entry.used for entry in own))
        table.add_row(
            marked(kind), str(len(own)), _size(sum(e.bytes for e in own)), f"{used:%Y-%m-%d %H:%M}"
        )
    table.add_section()
    table.add_row("all", str(len(entries)), _size(sum(entry.bytes for entry in entries)), "")
    console().print(table)


@command.command("prune")
@folder_argument
@click.option(
    "--limit",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="GB",
    help="What may stay; what was used last stays longest.",
)
@needs_prune
@debug_option
def prune(folder: Path | str, limit: float) -> None:
    """Remove entries until the rest takes no more than --limit, and unfinished files."""
    cache = _open(folder)
    abandoned = cache.sweep()
    removed = cache.make_room(int(limit * 1e9))
    left = cache.entries()
    echo(
        f"removed {len(removed)} entries ({_size(sum(entry.bytes for entry in removed))}) and "
        f"{abandoned} unfinished files; {len(left)} entries "
        f"({_size(sum(entry.bytes for entry in left))}) stay"
    )


@command.command("verify")
@folder_argument
@needs_prune
@debug_option
def verify(folder: Path | str) -> None:
    """Read every entry, and name those whose content is not what was written.

    A run that meets one computes it again, so nothing has to be done; the exit code is 1.
    """
    damaged, count = [], 0
    for entry, is_damaged in _open(folder).damaged():
        count += 1
        if is_damaged:
            damaged.append(entry)
            echo(f"damaged: {entry.path}")
    if damaged:
        raise RunFailed(f"{len(damaged)} of {count} entries are damaged")
    echo(f"all {count} entries are whole")


def _list_store(url: str) -> None:
    """Show what is in a store, of which nobody knows when it was used.

    Raises:
        UserError: it cannot be read.
    """
    from rich.table import Table

    from permllm.runner.caching.object_store import ObjectStore, StoreError

    try:
        kinds = ObjectStore.at(url).sizes()
    except StoreError as error:
        raise UserError(f"the store {url} cannot be read: {error}") from error
    table = Table("kind", "in the store", "size")
    for kind, (count, size) in sorted(kinds.items()):
        table.add_row(marked(kind), str(count), _size(size))
    table.add_section()
    counts, sizes = zip(*kinds.values(), strict=True) if kinds else ((), ())
    table.add_row("all", str(sum(counts)), _size(sum(sizes)))
    console().print(table)


def _open(folder: Path | str) -> Cache:
    """The cache in a folder or in a run's folder.

    Raises:
        UserError: there is none, or it is a store.
    """
    if isinstance(folder, str):
        raise UserError(
            f"{redacted(folder)} is a store, and this looks after folders",
            hint="what lies in a store goes by its own rules for how long objects stay",
        )
    from permllm.runner.caching.store import Cache
    from permllm.runs.folder import CACHE, PIPELINE

    place = folder / CACHE if (folder / PIPELINE).exists() else folder
    cache = Cache(place)
    if not cache.is_cache():
        raise UserError(
            f"{place} is no cache of permllm",
            hint="name the folder given to --cache of the command run, or a run's folder",
        )
    return cache


def _size(count: int) -> str:
    from permllm.units import memory

    return memory(count)
