"""Pipeline files to :class:`~permllm.pipeline.schema.Pipeline`, and back to plain data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from permllm.errors import UserError
from permllm.pipeline.deprecations import warn_of_deprecated
from permllm.pipeline.document import Document, Origin, parse_yaml, plain_document
from permllm.pipeline.dotted_keys import apply_settings
from permllm.pipeline.field_errors import shown
from permllm.pipeline.lookup import Lookup
from permllm.pipeline.matrix.expand import MATRIX, base_document, check_axes, resolved_axes
from permllm.pipeline.schema import MAX_NAME, VERSION, Pipeline
from permllm.pipeline.structuring import structure
from permllm.pipeline.unstructuring import differences, dump_yaml, resolved

__all__ = [
    "blaming",
    "differences",
    "dump_yaml",
    "load_plain_yaml",
    "read_mapping",
    "read_pipeline",
    "read_text",
    "resolved",
]

PLUGINS = "plugins"

MAX_BYTES = 2**20
"""The largest pipeline file; larger ones are surely something else."""


def read_pipeline(path: str | Path, registry: Lookup, settings: Iterable[str] = ()) -> Pipeline:
    """Read a pipeline file.

    Args:
        path: the file.
        registry: where its components are looked up.
        settings: ``KEY=VALUE`` of each ``--set``, applied in order.

    Returns:
        the pipeline, with all components made and paths absolute; its ``matrix`` holds
        resolved plain values, every combination of which was checked.

    Raises:
        UserError: anything that is wrong with the file, at its line and column.
    """
    path = Path(path)
    text = _file_text(path)
    return read_text(text, str(path), path.parent, registry, settings)


def read_text(
    text: str, name: str, base_dir: Path, registry: Lookup, settings: Iterable[str] = ()
) -> Pipeline:
    """The same for text.

    Args:
        text: YAML.
        name: the file's name for error messages; its stem is the pipeline's default name.
        base_dir: the folder that relative paths start from.
        registry, settings: as for :func:`read_pipeline`.
    """
    document = parse_yaml(text, Origin(file=name))
    return _read_document(document, _default_name(name), base_dir, registry, settings)


def read_mapping(
    data: Mapping[str, Any],
    registry: Lookup,
    *,
    name: str = "pipeline",
    base_dir: Path | None = None,
    settings: Iterable[str] = (),
) -> Pipeline:
    """The same for plain data, such as what :func:`resolved` gave.

    Args:
        data: what a file would hold.
        registry, settings: as for :func:`read_pipeline`.
        name: the pipeline's name if ``data`` has none.
        base_dir: the folder that relative paths start from; None for the current one.
    """
    document = plain_document(_listed(data), Origin())
    return _read_document(document, name, base_dir or Path.cwd(), registry, settings)


def load_plain_yaml(path: Path) -> Any:
    """The plain data of a YAML file that permllm wrote, such as a run's resolved pipeline.

    Raises:
        UserError: it cannot be read, or is no longer valid YAML.
    """
    return parse_yaml(_file_text(path), Origin(file=str(path))).data


@contextmanager
def blaming(path: Path | None, *keys: str | int) -> Iterator[None]:
    """Give user errors of the block the place of a key in a pipeline file.

    Args:
        path: the file; None leaves errors as they are.
        keys: where the value stands, from the root; what surrounds it is named where the
            file does not hold it, as with a default.
    """
    try:
        yield
    except UserError as error:
        if path is not None and error.file is None:
            origin = parse_yaml(_file_text(path), Origin(file=str(path))).origin(keys)
            error.file, error.line, error.column = origin.file, origin.line, origin.column
        raise


def _read_document(
    document: Document, name: str, base_dir: Path, registry: Lookup, settings: Iterable[str]
) -> Pipeline:
    root = document.origin(())
    if not isinstance(document.data, dict):
        found = "it is empty" if document.data is None else f"it is {shown(document.data)}"
        raise root.error(
            f"a pipeline file must be a mapping, but {found}",
            "start from 'model:', 'pattern:' and 'layers:'",
        )
    document = attrs.evolve(document, data={"name": name} | document.data)
    document = apply_settings(document, settings)
    _check_version(document)
    check_axes(document)
    base_dir = base_dir.absolute()
    _load_plugins(document, registry, base_dir)
    base = base_document(document, registry, base_dir)
    pipeline = structure(base, Pipeline, registry, base_dir)
    warn_of_deprecated(base, pipeline)
    if not document.data.get(MATRIX):
        return pipeline
    return attrs.evolve(pipeline, matrix=resolved_axes(document, registry, base_dir))


def _load_plugins(document: Document, registry: Lookup, base_dir: Path) -> None:
    """Add the files that ``plugins:`` names to the registry.

    Raises:
        UserError: one does not work; at its place.
    """
    if PLUGINS not in document.data:
        return
    hint: Any = tuple[Path, ...]
    files = structure(document.part((PLUGINS,)), hint, registry, base_dir)
    for index, path in enumerate(files):
        try:
            registry.add_file(path)
        except UserError as error:
            raise document.origin((PLUGINS, index)).error(error.message, error.hint) from error


def _check_version(document: Document) -> None:
    version = document.data.get("permllm")
    if isinstance(version, int) and version > VERSION:
        raise document.origin(("permllm",)).error(
            f"this file needs a newer permllm: it has schema version {version}, "
            f"and this permllm reads up to {VERSION}",
            "pip install --upgrade permllm",
        )


def _file_text(path: Path) -> str:
    file = str(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError("there is no such file", file=file) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=file) from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{len(data)} bytes are too many for a pipeline file", file=file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError("this is not UTF-8 text", file=file, line=line) from None


def _default_name(file: str) -> str:
    """A file's stem as a pipeline's name."""
    stem = re.sub(r"[^\w .+@-]+", "-", Path(file).stem).lstrip(" .+@-")
    return stem[:MAX_NAME] or "pipeline"


def _listed(data: Any) -> Any:
    """Plain data with lists for tuples and text for paths."""
    if isinstance(data, Mapping):
        return {str(key): _listed(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_listed(value) for value in data]
    return str(data) if isinstance(data, Path) else data
