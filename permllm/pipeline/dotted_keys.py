"""Values at dotted keys: ``--set layers.permutation.passes=3`` and the keys of ``matrix:``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from permllm.errors import UserError
from permllm.fields.declared import REFERENCE, key_of, option_fields
from permllm.fields.errors import Keys
from permllm.fields.options import option_types
from permllm.pipeline.document import Document, Origin, plain_document
from permllm.pipeline.parsing import parse_yaml
from permllm.pipeline.plain import ABSENT, dotted, value_at
from permllm.pipeline.schema import Pipeline

MATRIX = "matrix"

INCLUDE, EXCLUDE, REPEAT = "include", "exclude", "repeat"

RESERVED = (INCLUDE, EXCLUDE, REPEAT)
"""What a matrix holds beside dotted keys."""


def apply_settings(document: Document, settings: Iterable[str]) -> Document:
    """A document with the ``KEY=VALUE`` of each ``--set`` put in, the values read as YAML.

    Raises:
        UserError: no ``=``, broken YAML, a key below something that has no keys, or a
            key whose value the matrix would replace.
    """
    keys = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise UserError(
                f"--set {setting}: expected KEY=VALUE with a dotted key",
                hint="for example --set layers.permutation.passes=3",
            )
        origin = Origin(setting=key)
        document = place_value(document, key, parse_yaml(text, origin), origin)
        keys.append(key)
    _refuse_overruled(document, keys)
    return document


def place_value(document: Document, key: str, value: Document, origin: Origin) -> Document:
    """A copy of the document with a value at a dotted key.

    What the key goes through is made on the way: a bare component name becomes a
    mapping, a default component is written out, a missing section is added.

    Args:
        document: the pipeline's document.
        key: dotted, with indices for lists, such as ``evaluate.0.length``.
        value: what to put there.
        origin: the origin of the key itself.
    """
    place: Keys = ()
    for part in _parts(document, key):
        document = _opened(document, place, origin)
        holder = document.at(place)
        step = _index(holder, part, place, origin) if isinstance(holder, list) else part
        place = (*place, step)
    return document.with_part(place, value, origin)


def by_depth(keys: Iterable[str]) -> list[str]:
    """Dotted keys so that none comes before one that it is a part of."""
    return sorted(keys, key=lambda key: key.count("."))


def parts_of(key: str) -> Keys:
    """A dotted key as a place; numbers are indices of lists."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def value_of(data: Any, key: str) -> Any:
    """The value of plain data at a dotted key, or :data:`~permllm.pipeline.plain.ABSENT`."""
    return value_at(data, key.split("."))


def _parts(document: Document, key: str) -> list[str]:
    """The keys that a dotted key goes through; those of a matrix have dots themselves."""
    parts = key.split(".")
    if parts[0] != MATRIX or len(parts) == 1:
        return parts
    rest = parts[1:]
    if rest[0] not in (INCLUDE, EXCLUDE):
        return [MATRIX, *_grouped(document.data.get(MATRIX), rest)]
    place = (MATRIX, rest[0], int(rest[1]) if rest[1:] and rest[1].isdecimal() else -1)
    return [MATRIX, *rest[:2], *_grouped(document.at(place), rest[2:])]


def _grouped(holder: Any, parts: list[str]) -> list[str]:
    """The parts with those joined that are one dotted key of ``holder``, or all of them."""
    for size in range(len(parts), 0, -1):
        if isinstance(holder, Mapping) and ".".join(parts[:size]) in holder:
            return [".".join(parts[:size]), *parts[size:]]
    return [".".join(parts)] if parts else []


def _opened(document: Document, place: Keys, origin: Origin) -> Document:
    """The document with a mapping or list at ``place``."""
    value = document.at(place)
    if value in (ABSENT, None):
        default = _default(place)
        data = {"name": default} if isinstance(default, str) else dict(default or {})
        return document.with_part(place, plain_document(data, origin), origin)
    if isinstance(value, (dict, list)):
        return document
    if not isinstance(value, str):
        raise origin.error(f"'{dotted(place)}' is {value}, which has no keys")
    named = plain_document({"name": value}, document.origin(place))
    return document.with_part(place, named, document.origin(place, key=True))


def _index(holder: list[Any], part: str, place: Keys, origin: Origin) -> int:
    if part.isdecimal() and int(part) < len(holder):
        return int(part)
    size = len(holder)
    raise origin.error(
        f"'{dotted(place)}' is a list with {size} entr{'y' if size == 1 else 'ies'}, "
        f"so '{part}' should be a number from 0 to {size - 1}"
        if size
        else f"'{dotted(place)}' is an empty list"
    )


def _default(place: Keys) -> Any:
    """The default component (as a file spells it) of a section's key, where there is one."""
    cls: Any = Pipeline
    default: Any = None
    for key in place:
        if not attrs.has(cls):
            return None
        fields = {key_of(field): field for field in option_fields(cls)}
        if key not in fields:
            return None
        default = fields[str(key)].metadata.get(REFERENCE)
        cls = option_types(cls)[str(key)]
    return default


def _refuse_overruled(document: Document, keys: Iterable[str]) -> None:
    axes = document.data.get(MATRIX)
    for key in keys if isinstance(axes, Mapping) else ():
        for axis in axes:
            if axis not in RESERVED and f"{key}.".startswith(f"{axis}."):
                raise Origin(setting=key).error(
                    f"the matrix sets '{axis}', so this would have no effect",
                    f"set matrix.{axis}, or drop the matrix with --set matrix=null",
                )
