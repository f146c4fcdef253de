"""A pipeline file that extends another: ``extends: base.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from permllm.errors import did_you_mean
from permllm.fields.errors import Keys, shown
from permllm.fields.reading import Placed
from permllm.pipeline.document import Document, Origin
from permllm.pipeline.parsing import MAX_NODES, parse_file

EXTENDS = "extends"

MAX_BASES = 20
"""The longest chain of files that extend each other."""


def extended(document: Document, folder: Path) -> Document:
    """A document with what it lacks of the file that it extends, and without ``extends``.

    Args:
        document: a pipeline file's, whole.
        folder: the folder that the path starts from.

    Raises:
        UserError: the base is not there, is no pipeline file, or extends what extends it.
    """
    return _extended(document, folder, ())


def _extended(document: Document, folder: Path, chain: tuple[Path, ...]) -> Document:
    if not isinstance(document.data, dict) or EXTENDS not in document.data:
        return document
    origin = document.origin((EXTENDS,))
    path = _path(document.data[EXTENDS], folder, origin)
    chain = (*chain, _identity(document, origin))
    if path.resolve() in chain:
        raise origin.error(f"'{path}' extends this file itself, by itself or by others")
    if len(chain) > MAX_BASES:
        raise origin.error(f"more than {MAX_BASES} files extend each other")
    base = parse_file(path)
    if not isinstance(base.data, dict):
        raise base.origin(()).error(
            f"a pipeline file must be a mapping, but it is {shown(base.data)}"
        )
    base = attrs.evolve(base, data=_placed(base.data, path.parent.absolute()))
    merged = _merged(_extended(base, path.parent, chain), document.without(EXTENDS))
    if len(merged.values) > MAX_NODES:
        raise origin.error(f"more than {MAX_NODES} values together with what it extends")
    return merged


def _identity(document: Document, origin: Origin) -> Path:
    """The file of a document, however it was called."""
    return Path(document.origin(()).file or origin.file or "").resolve()


def _path(value: Any, folder: Path, origin: Origin) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise origin.error(
            f"expected the path of another pipeline file, not {shown(value)}",
            f"for example {EXTENDS}: base.yaml",
        )
    try:
        path = folder / Path(value).expanduser()
        if path.is_file():
            return path
        others = [one.name for one in path.parent.glob("*.y*ml")]
    except (OSError, RuntimeError, ValueError) as error:
        raise origin.error(f"{shown(value)} cannot be read: {error}") from error
    raise origin.error(
        f"there is no file '{path}'", did_you_mean(path.name, others) if others else None
    )


def _placed(data: Any, folder: Path) -> Any:
    """Plain data whose texts know the folder of their file."""
    if isinstance(data, dict):
        return {key: _placed(value, folder) for key, value in data.items()}
    if isinstance(data, list):
        return [_placed(value, folder) for value in data]
    return Placed(data, folder) if isinstance(data, str) else data


def _merged(base: Document, over: Document) -> Document:
    """A base with what another document says otherwise."""
    replaced: set[Keys] = set()
    data = _overlaid(base.data, over.data, (), replaced)

    def kept(place: Keys) -> bool:
        return not any(place[:size] in replaced for size in range(1, len(place) + 1))

    values = {place: origin for place, origin in base.values.items() if kept(place)}
    keys = {place: origin for place, origin in base.keys.items() if kept(place)}
    return Document(data, values | dict(over.values), keys | dict(over.keys))


def _overlaid(base: Any, over: Any, place: Keys, replaced: set[Keys]) -> Any:
    """Two values as one; notes the places at which nothing of the base is left."""
    if isinstance(base, str) and isinstance(over, dict):
        # A bare name is short for a mapping that has nothing else.
        base = {"name": base}
    if not isinstance(base, dict) or not isinstance(over, dict) or _other(base, over, place):
        replaced.add(place)
        return over
    return base | {
        key: _overlaid(base[key], value, (*place, key), replaced) if key in base else value
        for key, value in over.items()
    }


def _other(base: dict[str, Any], over: dict[str, Any], place: Keys) -> bool:
    """Whether two mappings are of other components, or models of other sources."""
    tag = "source" if place == ("model",) else "name"
    # The pipeline's own name does not say what it is.
    return bool(place) and tag in base and tag in over and base[tag] != over[tag]
