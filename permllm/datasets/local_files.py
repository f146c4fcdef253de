"""Text files that a user named: finding them and telling them apart."""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path

from permllm.datasets.streams import uncompressed_name
from permllm.errors import UserError, nearest


def matching_files(path: Path) -> list[Path]:
    """The files that a path or a glob names, sorted.

    Raises:
        UserError: there is none, or the path is a folder.
    """
    if path.is_dir():
        raise UserError(
            f"'{path}' is a folder, not a file", hint=f"name the files in it: {path / '*.txt'}"
        )
    if path.is_file():
        return [path]
    matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207
    files = [file for file in matches if file.is_file()]
    if not files:
        kind = "no file matches" if glob.has_magic(str(path)) else "there is no file"
        raise UserError(f"{kind} '{path}'", hint=_neighbour(path))
    return files


def content_digest(path: Path) -> str:
    """The SHA-256 of what a path or a glob names: names and bytes of all its files.

    A path that names nothing has a digest of its own.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        files = [path] if path.is_file() else [Path(name) for name in names]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as content:
                inside = hashlib.file_digest(content, "sha256").hexdigest()
            digest.update(f"{file.name}\0{inside}\n".encode())
    return digest.hexdigest()


def label_of(path: Path) -> str:
    """A short name for a path or a glob: the file's stem, or its folder's name."""
    if not glob.has_magic(path.name):
        return uncompressed_name(path).stem
    plain = [part for part in path.parent.parts if not glob.has_magic(part)]
    return plain[-1].strip("/\\") or path.name if plain else path.name


def _neighbour(path: Path) -> str | None:
    """A hint with the file of the same folder that was most likely meant."""
    if not path.parent.is_dir():
        return (
            f"the folder '{path.parent}' does not exist; relative paths start at the pipeline file"
        )
    near = nearest(path.name, [file.name for file in path.parent.iterdir()])
    return f"did you mean '{near}'?" if near else None
