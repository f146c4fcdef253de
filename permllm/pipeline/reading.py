"""Pipeline files to studies, and plain data to pipelines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from permllm.commands import pip_install
from permllm.errors import UserError
from permllm.extras import PRUNE
from permllm.fields.errors import shown
from permllm.pipeline.document import Document, Origin, plain_document
from permllm.pipeline.dotted_keys import MATRIX, apply_settings
from permllm.pipeline.extending import EXTENDS, extended
from permllm.pipeline.lookup import Lookup
from permllm.pipeline.matrix.cells import Cell, only_cell
from permllm.pipeline.matrix.expansion import base_of, expand
from permllm.pipeline.matrix.shape import check_shape
from permllm.pipeline.parsing import parse_file, parse_yaml
from permllm.pipeline.resolving import Resolver
from permllm.pipeline.schema import MAX_NAME, VERSION, Pipeline
from permllm.pipeline.unstructuring import differences, dump_yaml, published, resolved

__all__ = [
    "Study",
    "blaming",
    "differences",
    "dump_yaml",
    "load_plain_yaml",
    "published",
    "read_mapping",
    "read_pipeline",
    "read_study",
    "read_text",
    "resolved",
    "study_of_text",
]

PLUGINS = "plugins"


@attrs.frozen
class Study:
    """What a pipeline file asks for.

    Attributes:
        pipeline: the file's, with all components made and paths absolute, but without the
            matrix applied; its ``matrix`` holds resolved plain values.
        cells: its runs: those of the matrix, or the only one.
    """

    pipeline: Pipeline
    cells: tuple[Cell, ...]


Recorded = Callable[[str], Mapping[str, str] | None]
"""Takes a pipeline's name, and gives the SHA-256 of plugin files by path as they were when a
run of it began; None where it did not come so far."""


def read_study(
    path: str | Path,
    registry: Lookup,
    settings: Iterable[str] = (),
    recorded: Recorded | None = None,
) -> Study:
    """Read a pipeline file.

    Args:
        path: the file.
        registry: where its components are looked up.
        settings: ``KEY=VALUE`` of each ``--set``, applied in order.
        recorded: what plugin files were when a run began that goes on; one that changed, or
            was none of them, is refused before any of it runs.

    Raises:
        UserError: anything that is wrong with the file, at its line and column.
    """
    path = Path(path)
    return _study(
        parse_file(path), _default_name(str(path)), path.parent, registry, settings, recorded
    )


def study_of_text(
    text: str,
    name: str,
    base_dir: Path,
    registry: Lookup,
    settings: Iterable[str] = (),
    recorded: Recorded | None = None,
) -> Study:
    """The same for text.

    Args:
        text: YAML.
        name: the file's name for error messages; its stem is the pipeline's default name.
        base_dir: the folder that relative paths start from.
        registry, settings, recorded: as for :func:`read_study`.
    """
    document = parse_yaml(text, Origin(file=name))
    return _study(document, _default_name(name), base_dir, registry, settings, recorded)


def read_pipeline(path: str | Path, registry: Lookup, settings: Iterable[str] = ()) -> Pipeline:
    """The pipeline of a file, as :func:`read_study` reads it."""
    return read_study(path, registry, settings).pipeline


def read_text(
    text: str, name: str, base_dir: Path, registry: Lookup, settings: Iterable[str] = ()
) -> Pipeline:
    """The pipeline of a text, as :func:`study_of_text` reads it."""
    return study_of_text(text, name, base_dir, registry, settings).pipeline


def read_mapping(
    data: Mapping[str, Any],
    registry: Lookup,
    *,
    name: str = "pipeline",
    base_dir: Path | None = None,
    settings: Iterable[str] = (),
) -> Pipeline:
    """The pipeline of plain data, such as what :func:`resolved` gave.

    Args:
        data: what a file would hold.
        registry, settings: as for :func:`read_study`.
        name: the pipeline's name if ``data`` has none.
        base_dir: the folder that relative paths start from; None for the current one.
    """
    document = plain_document(_listed(data), Origin())
    return _study(document, name, base_dir or Path.cwd(), registry, settings).pipeline


def load_plain_yaml(path: Path) -> Any:
    """The plain data of a YAML file that permllm wrote, such as a run's resolved pipeline.

    Raises:
        UserError: it cannot be read, or is no longer valid YAML.
    """
    return parse_file(path).data


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
            origin = extended(parse_file(path), path.parent).origin(keys)
            error.file, error.line, error.column = origin.file, origin.line, origin.column
        raise


def _study(
    document: Document,
    name: str,
    base_dir: Path,
    registry: Lookup,
    settings: Iterable[str],
    recorded: Recorded | None = None,
) -> Study:
    if not isinstance(document.data, dict):
        kind = "empty" if document.data is None else shown(document.data)
        raise document.origin(()).error(
            f"a pipeline file must be a mapping, but it is {kind}",
            "start from 'model:', 'pattern:' and 'layers:'",
        )
    document = extended(document, base_dir)
    document = attrs.evolve(document, data={"name": name} | document.data)
    document = apply_settings(document, settings)
    if EXTENDS in document.data:
        raise document.origin((EXTENDS,), key=True).error(
            "only a file can extend another", f"write '{EXTENDS}: base.yaml' into it"
        )
    _check_version(document)
    check_shape(document)
    resolver = Resolver(registry, base_dir.absolute())
    _load_plugins(document, registry, resolver, recorded)
    base = base_of(document, resolver)
    if not document.data.get(MATRIX):
        return Study(base.pipeline, (only_cell(base.pipeline),))
    matrix, cells = expand(document, base, resolver)
    return Study(attrs.evolve(base.pipeline, matrix=matrix), cells)


def _load_plugins(
    document: Document, registry: Lookup, resolver: Resolver, recorded: Recorded | None
) -> None:
    """Add the files that ``plugins:`` names to the registry.

    Raises:
        UserError: one does not work, or changed since it was recorded; at its place.
    """
    if PLUGINS not in document.data:
        return
    # As the user wrote it: the name that finds the run's folder.
    digests = recorded(str(document.data["name"])) if recorded else None
    hint: Any = tuple[Path, ...]
    files = resolver.structurer.structure(document.part((PLUGINS,)), hint)
    for index, path in enumerate(files):
        try:
            registry.add_file(path, None if digests is None else digests.get(str(path), ""))
        except UserError as error:
            raise document.origin((PLUGINS, index)).error(error.message, error.hint) from error


def _check_version(document: Document) -> None:
    version = document.data.get("permllm")
    if isinstance(version, int) and version > VERSION:
        raise document.origin(("permllm",)).error(
            f"this file needs a newer permllm: it has schema version {version}, "
            f"and this permllm reads up to {VERSION}",
            pip_install("--upgrade", PRUNE),
        )


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
