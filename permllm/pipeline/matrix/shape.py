"""The shape of ``matrix:``: dotted keys with their values, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from permllm.errors import did_you_mean, nearest
from permllm.fields.errors import Keys, shown
from permllm.fields.options import describe_options
from permllm.pipeline.document import Document
from permllm.pipeline.dotted_keys import EXCLUDE, INCLUDE, MATRIX, REPEAT, RESERVED
from permllm.pipeline.schema import Pipeline

MAX_CELLS = 1000
"""The most runs that one file may ask for."""

MAX_PRODUCT = 10 * MAX_CELLS
"""The most combinations that ``exclude`` may choose from."""

MAX_KEYS = 100
"""The most keys of a matrix."""

MAX_REPEAT = 100
"""The most repeats of a combination."""

SEEDS = ("seed", "calibration.seed")
"""What differs between the repeats of a combination."""

VARIED = ("calibration", "layers", "pattern", "seed")
"""Keys that runs of a file may differ in; they share the others, as they do the dense model."""


def axes_of(document: Document) -> dict[str, tuple[Keys, ...]]:
    """The dotted keys of a matrix of the right shape, with the places of their values."""
    matrix = document.data.get(MATRIX) or {}
    return {
        key: tuple((MATRIX, key, step) for step in _steps(values))
        for key, values in matrix.items()
        if key not in RESERVED
    }


def included_places(document: Document) -> Iterator[Keys]:
    """Where each value of the matrix' ``include`` stands."""
    for index, entry in enumerate((document.data.get(MATRIX) or {}).get(INCLUDE, ())):
        yield from ((MATRIX, INCLUDE, index, key) for key in entry)


def _steps(values: Any) -> Iterable[int | str]:
    """What leads to each value of an axis: its name, or its index."""
    return values if isinstance(values, dict) else range(len(values))


def check_shape(document: Document) -> None:
    """Refuse a ``matrix:`` of the wrong shape.

    It is a mapping of dotted keys to values, as a list or by name, with ``include``,
    ``exclude`` and ``repeat`` beside them. The values are not looked at.

    Raises:
        UserError: at the place of what is wrong.
    """
    matrix = document.data.get(MATRIX)
    if matrix is None:
        return
    if not isinstance(matrix, dict):
        raise document.origin((MATRIX,)).error("the matrix must map dotted keys to lists")
    if len(matrix) > MAX_KEYS:
        raise document.origin((MATRIX,), key=True).error(
            f"the matrix has {len(matrix)} keys; {MAX_KEYS} are the most"
        )
    checks = {INCLUDE: _check_entries, EXCLUDE: _check_entries, REPEAT: _check_repeat}
    for key, values in matrix.items():
        checks.get(key, _check_axis)(document, key, values)
    _check_size(document)
    if REPEAT in matrix:
        _check_seeds(document)


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


def _check_axis(document: Document, key: str, values: Any) -> None:
    place = (MATRIX, key)
    _check_key(document, key, place)
    if not isinstance(values, (list, dict)) or not values:
        raise document.origin(place).error(
            f"the matrix needs a list of values for '{key}'", f"for example {key}: [a, b]"
        )
    for name in values if isinstance(values, dict) else ():
        _check_name(document, key, name)


def _check_key(document: Document, key: str, place: Keys) -> None:
    at_key = document.origin(place, key=True)
    if not all(key.split(".")):
        raise at_key.error(f"'{key}' is no dotted key", "such as layers.permutation")
    known = [info.name for info in describe_options(Pipeline)]
    if (head := key.split(".")[0]) in known and head not in VARIED:
        raise at_key.error(
            f"'{key}' cannot vary, since all runs are compared with one dense model",
            "write one pipeline file for each value, or give it with --set",
        )
    if key not in known and "." not in key and nearest(key, RESERVED):
        raise at_key.error(f"unknown key '{key}'", did_you_mean(key, [*VARIED, *RESERVED]))


def _check_name(document: Document, key: str, name: str) -> None:
    at_name = document.origin((MATRIX, key, name), key=True)
    if name == "name":
        raise at_name.error(
            f"a value of '{key}' cannot be called 'name'",
            f"a mapping here is names and their values; one value alone is {key}: [{{name: …}}]",
        )
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise at_name.error(
            f"the name {name!r} of a value must be printable text without blanks around it"
        )


def _check_entries(document: Document, name: str, entries: Any) -> None:
    """Whether ``include`` or ``exclude`` is a list of mappings with keys that may stand there."""
    example = f"for example {name}: [{{layers.permutation: none, pattern: '4:8'}}]"
    if not isinstance(entries, list) or not entries:
        raise document.origin((MATRIX, name)).error(
            f"'{name}' must be a list of mappings of dotted keys to values", example
        )
    axes = [axis for axis in document.data[MATRIX] if axis not in RESERVED]
    for index, entry in enumerate(entries):
        place = (MATRIX, name, index)
        if not isinstance(entry, dict) or (name == EXCLUDE and not entry):
            raise document.origin(place).error(
                f"expected a mapping of dotted keys to values, not {shown(entry or None)}", example
            )
        for key in entry:
            if name == INCLUDE:
                _check_key(document, key, (*place, key))
            elif key not in axes:
                raise document.origin((*place, key), key=True).error(
                    f"'{key}' is no key of the matrix", did_you_mean(key, axes)
                )


def _check_repeat(document: Document, key: str, repeat: Any) -> None:
    at_repeat = document.origin((MATRIX, key))
    if not isinstance(repeat, int) or isinstance(repeat, bool):
        raise at_repeat.error(f"expected a whole number of repeats, not {shown(repeat)}")
    if not 1 <= repeat <= MAX_REPEAT:
        raise at_repeat.error(f"{REPEAT} must be between 1 and {MAX_REPEAT}, not {repeat}")


def _check_seeds(document: Document) -> None:
    """Refuse seeds in a matrix that makes its own."""
    axes = ((MATRIX, key) for key in axes_of(document))
    for place in (*axes, *included_places(document)):
        if place[-1] in SEEDS:
            raise document.origin(place, key=True).error(
                f"'{REPEAT}' sets '{place[-1]}' itself, so the matrix cannot",
                f"leave '{REPEAT}' or the key out",
            )


def _check_size(document: Document) -> None:
    """Refuse at once what would take long to look at."""
    axes, matrix = axes_of(document), document.data[MATRIX]
    included = len(matrix.get(INCLUDE, ()))
    product = math.prod(map(len, axes.values()))
    if EXCLUDE not in matrix:
        check_count(document, product + included if axes else included or 1)
    elif max(product, included) > MAX_PRODUCT:
        raise document.origin((MATRIX,), key=True).error(
            f"the matrix has {product} combinations; {MAX_PRODUCT} are the most that "
            f"'{EXCLUDE}' can choose from"
        )
