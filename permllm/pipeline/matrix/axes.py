"""The axes of a matrix, and the file that they vary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from permllm.pipeline.document import Document, Keys
from permllm.pipeline.dotted_keys import INCLUDE, MATRIX, REPEAT, RESERVED, place_value
from permllm.pipeline.lookup import Lookup
from permllm.pipeline.schema import Pipeline
from permllm.pipeline.structuring import missing_keys

MAX_CELLS = 1000
"""The most runs that one file may ask for."""

ABSENT: Any = object()
"""What :func:`value_at` gives where there is no value."""


@attrs.frozen
class Axis:
    """A dotted key of the matrix with its values.

    Attributes:
        key: the dotted key.
        steps: what leads from the key to each value: its index in a list, or its name.
    """

    key: str
    steps: tuple[int | str, ...]

    @property
    def named(self) -> bool:
        """Whether the values have names of their own."""
        return isinstance(self.steps[0], str)

    def place(self, index: int) -> Keys:
        """Where a value stands in the document."""
        return (MATRIX, self.key, self.steps[index])


def axes_of(document: Document) -> tuple[Axis, ...]:
    """The axes of a document's matrix, whose shape was checked."""
    return tuple(
        Axis(key, tuple(values) if isinstance(values, dict) else tuple(range(len(values))))
        for key, values in (document.data.get(MATRIX) or {}).items()
        if key not in RESERVED
    )


def entries_of(document: Document, name: str) -> Sequence[Mapping[str, Any]]:
    """The mappings of the matrix' ``include`` or ``exclude``."""
    found: Sequence[Mapping[str, Any]] = (document.data.get(MATRIX) or {}).get(name) or ()
    return found


def base_document(document: Document, registry: Lookup, base_dir: Path) -> Document:
    """The document without its matrix.

    What no pipeline can do without, and only the matrix has, gets the first value there.

    Args:
        document: a pipeline file whose matrix has the right shape.
        registry: where components are looked up.
        base_dir: the folder that relative paths start from.
    """
    base = document.without(MATRIX)
    missing = missing_keys(base, Pipeline, registry, base_dir)
    firsts = _first_values(document)
    for key in by_depth(firsts):
        parts = parts_of(key)
        if not base.holds(parts) and any(_on_one_way(parts, place) for place in missing):
            base = with_value(base, document, key, firsts[key])
    return base


def with_value(base: Document, document: Document, key: str, place: Keys) -> Document:
    """``base`` with a value of ``document``'s matrix at a dotted key.

    Args:
        base: what gets the value.
        document: whose matrix has it.
        key: where it goes.
        place: where it stands: under the key of an axis, or in an entry.
    """
    holder = place if place[1] in RESERVED else place[:2]
    return place_value(base, key, document.part(place), document.origin(holder, key=True))


def by_depth(keys: Iterable[str]) -> list[str]:
    """Dotted keys so that none comes before one that it is a part of."""
    return sorted(keys, key=lambda key: key.count("."))


def parts_of(key: str) -> Keys:
    """A dotted key as a place; numbers are indices of lists."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def value_at(data: Any, key: str) -> Any:
    """The value of plain data at a dotted key, or :data:`ABSENT`."""
    for part in key.split("."):
        if isinstance(data, dict) and part in data:
            data = data[part]
        elif isinstance(data, list) and part.isdecimal() and int(part) < len(data):
            data = data[int(part)]
        else:
            return ABSENT
    return data


def check_count(document: Document, combinations: int) -> None:
    """Refuse more runs than one file may ask for.

    Raises:
        UserError: at the matrix.
    """
    repeat = document.data[MATRIX].get(REPEAT, 1)
    if combinations * repeat <= MAX_CELLS:
        return
    runs = f", {combinations * repeat} runs with {REPEAT}: {repeat}" if repeat > 1 else ""
    raise document.origin((MATRIX,), key=True).error(
        f"the matrix has {combinations} combinations{runs}; {MAX_CELLS} are the most"
    )


def _first_values(document: Document) -> dict[str, Keys]:
    """Each key that the matrix sets, with the place of its first value."""
    firsts = {axis.key: axis.place(0) for axis in axes_of(document)}
    for index, entry in enumerate(entries_of(document, INCLUDE)):
        firsts = {key: (MATRIX, INCLUDE, index, key) for key in entry} | firsts
    return firsts


def _on_one_way(one: Keys, other: Keys) -> bool:
    """Whether one of two places is the other or surrounds it."""
    size = min(len(one), len(other))
    return one[:size] == other[:size]
