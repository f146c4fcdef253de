"""What the exports of a run hold, so that a damaged one is known as such."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import attrs

from permllm.errors import UserError
from permllm.files import file_hash, listing, read_record, write_sealed
from permllm.runs.folder import set_aside
from permllm.runs.records import Exported

FOLDER = "exports"
"""The folder of a run's exports in the folder of the run."""

LISTING = "exports.json"
"""The file beside it that says what they hold."""


def note(directory: Path, name: str, export: Path) -> None:
    """Keep what an export holds, before it takes its place.

    Args:
        directory: the run's folder.
        name: of the exporter.
        export: the complete folder.
    """
    kept = attrs.asdict(_listed(directory))["exports"] | {name: listing(export)}
    write_sealed(directory / LISTING, attrs.asdict(Exported(kept)))


def is_whole(directory: Path, name: str, warn: Callable[[str], None]) -> bool:
    """Whether a run's export is there with all that it should hold.

    Files that somebody has laid beside the others do not count. A damaged export is set aside.

    Args:
        directory: the run's folder.
        name: of the exporter.
        warn: is told what is wrong.
    """
    export = directory / FOLDER / name
    if not export.exists():
        return False
    files = _listed(directory).exports.get(name)
    wrong = "nothing says what it should hold" if files is None else _wrong(export, files)
    if wrong is None:
        return True
    warn(f"the export {export} is damaged ({wrong}): it is kept in '{set_aside(export)}'")
    return False


def are_whole(directory: Path, names: Iterable[str], warn: Callable[[str], None]) -> bool:
    """Whether all exports that a result claims are there; a warning names what is not."""
    missing = [name for name in names if not is_whole(directory, name, warn)]
    for name in missing:
        warn(f"the export '{name}' of '{directory.name}' is made again")
    return not missing


def _listed(directory: Path) -> Exported:
    try:
        return read_record(directory / LISTING, Exported)
    except UserError:
        return Exported()


def _wrong(export: Path, files: dict[str, str]) -> str | None:
    for name, expected in files.items():
        path = export / name
        try:
            if file_hash(path) != expected:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None
