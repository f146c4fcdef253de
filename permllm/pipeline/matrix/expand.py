"""``matrix:``: one run for each combination of values at dotted keys."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

from permllm.errors import DeprecatedWarning, did_you_mean, nearest
from permllm.pipeline.document import Document, Keys, Origin, plain_document
from permllm.pipeline.dotted_keys import EXCLUDE, INCLUDE, MATRIX, REPEAT, RESERVED
from permllm.pipeline.field_errors import shown
from permllm.pipeline.lookup import Lookup
from permllm.pipeline.matrix.axes import (
    ABSENT,
    MAX_CELLS,
    axes_of,
    base_document,
    check_count,
    entries_of,
    value_at,
)
from permllm.pipeline.matrix.combinations import Combination, Expanded, work_out
from permllm.pipeline.matrix.labels import combination_labels, repeat_labels, single_label
from permllm.pipeline.options import describe_options
from permllm.pipeline.schema import Pipeline
from permllm.pipeline.unstructuring import resolved

__all__ = ["MATRIX", "Cell", "base_document", "check_axes", "derived_seed", "expand",
           "resolved_axes"]  # fmt: skip

MAX_PRODUCT = 10 * MAX_CELLS
"""The most combinations that ``exclude`` may choose from."""

MAX_REPEAT = 100
"""The most repeats of a combination."""

SEEDS = ("seed", "calibration.seed")
"""What differs between the repeats of a combination."""

FIXED = (
    "permllm",
    "name",
    "model",
    "plugins",
    "evaluate",
    "export",
    "track",
    "matrix",
    "device",
    "dtype",
)
"""Keys that all runs of a file share, since they are compared with one dense model."""


@attrs.frozen
class Cell:
    """One run of a matrix.

    Attributes:
        label: the values that tell it apart from the other runs.
        options: every dotted key that the matrix sets in any run, as far as this one has
            it, with this one's resolved plain value; the seeds, too, of repeated runs.
        pipeline: the pipeline with these values, and no matrix.
        setting: the label that all repeats of one setting share.
        repeat: which repeat of its setting it is, from 0.
    """

    label: str
    options: dict[str, Any]
    pipeline: Pipeline
    setting: str = attrs.field(default=attrs.Factory(lambda self: self.label, takes_self=True))
    repeat: int = 0


def expand(pipeline: Pipeline, registry: Lookup) -> tuple[Cell, ...]:
    """The runs of a pipeline: one without a matrix, else those of its combinations.

    The first key of the matrix changes slowest; included combinations come last. The
    repeats of a combination follow each other.
    """
    bare = single_label(pipeline.layers.permutation.name, pipeline.layers.pruner.name)
    if not pipeline.matrix:
        return (Cell(bare, {}, attrs.evolve(pipeline, matrix=None)),)
    document = plain_document(resolved(pipeline, registry), Origin(file=pipeline.name))
    with warnings.catch_warnings():
        # The reader has warned of these already, at their places in the file.
        warnings.simplefilter("ignore", DeprecatedWarning)
        found = work_out(document, registry, Path())
    told = [combination.told for combination in found.combinations]
    settings = combination_labels(told, found.names, bare)
    repeat = pipeline.matrix.get(REPEAT, 1)
    return tuple(
        Cell(label, _options(found, combination, number, repeat), seeded, setting, number)
        for combination, setting, labels in zip(
            found.combinations, settings, repeat_labels(settings, repeat), strict=True
        )
        for number, (label, seeded) in enumerate(
            zip(labels, repeats(combination.pipeline, repeat), strict=True)
        )
    )


def repeats(pipeline: Pipeline, count: int) -> Iterator[Pipeline]:
    """A pipeline again and again, each time with other seeds; first with its own."""
    calibration = pipeline.calibration
    for number in range(count):
        seeds = [
            derived_seed(own, key, number)
            for key, own in zip(SEEDS, (pipeline.seed, calibration.seed), strict=True)
        ]
        yield attrs.evolve(
            pipeline, seed=seeds[0], calibration=attrs.evolve(calibration, seed=seeds[1])
        )


def derived_seed(seed: int, key: str, repeat: int) -> int:
    """The seed of a repeat: ``seed`` itself for the first, which has the number 0.

    The others have the first five bytes, as a big-endian number, of the SHA-256 of
    ``"KEY=SEED repeat=NUMBER"``.

    >>> derived_seed(7, "seed", 0), derived_seed(7, "seed", 1)
    (7, 1048627504709)
    """
    if repeat == 0:
        return seed
    text = f"{key}={seed} repeat={repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:5], "big")


def check_axes(document: Document) -> None:
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
    for key, values in matrix.items():
        if key in (INCLUDE, EXCLUDE):
            _check_entries(document, key, values)
        elif key == REPEAT:
            _check_repeat(document, values)
        else:
            _check_axis(document, key, values)
    _check_size(document)
    if REPEAT in matrix:
        _check_seeds(document)


def resolved_axes(document: Document, registry: Lookup, base_dir: Path) -> dict[str, Any]:
    """The matrix with every default of its values spelled out; checks every combination.

    Raises:
        UserError: a value or a combination does not fit or is there twice, an exclusion
            matches nothing, or there are too many runs; at its place.
    """
    found = work_out(document, registry, base_dir)
    if REPEAT in document.data[MATRIX]:
        _check_same_seeds(document, found)
    return found.matrix


def _options(found: Expanded, combination: Combination, number: int, repeat: int) -> dict[str, Any]:
    options = {key: value_at(combination.plain, key) for key in found.keys}
    options = {key: value for key, value in options.items() if value is not ABSENT}
    if repeat > 1:
        for key in SEEDS:
            options[key] = derived_seed(value_at(combination.plain, key), key, number)
    return options


# --- the shape of a matrix ------------------------------------------------------------


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
    if key.split(".")[0] in FIXED:
        raise at_key.error(
            f"'{key}' cannot vary, since all runs are compared with one dense model",
            "write one pipeline file for each value, or give it with --set",
        )
    known = [info.name for info in describe_options(Pipeline) if info.name not in FIXED]
    if "." not in key and key not in known and nearest(key, RESERVED):
        raise at_key.error(f"unknown key '{key}'", did_you_mean(key, [*known, *RESERVED]))


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


def _check_repeat(document: Document, repeat: Any) -> None:
    if not isinstance(repeat, int) or isinstance(repeat, bool):
        raise document.origin((MATRIX, REPEAT)).error(
            f"expected a whole number of repeats, not {shown(repeat)}"
        )
    if not 1 <= repeat <= MAX_REPEAT:
        raise document.origin((MATRIX, REPEAT)).error(
            f"{REPEAT} must be between 1 and {MAX_REPEAT}, not {repeat}"
        )


def _check_seeds(document: Document) -> None:
    """Refuse seeds in a matrix that makes its own."""
    places: Iterable[Keys] = (
        *((MATRIX, axis.key) for axis in axes_of(document)),
        *(
            (MATRIX, INCLUDE, index, key)
            for index, entry in enumerate(entries_of(document, INCLUDE))
            for key in entry
        ),
    )
    for place in places:
        if place[-1] in SEEDS:
            raise document.origin(place, key=True).error(
                f"'{REPEAT}' sets '{place[-1]}' itself, so the matrix cannot",
                f"leave '{REPEAT}' or the key out",
            )


def _check_same_seeds(document: Document, found: Expanded) -> None:
    """Whether all combinations start from the same seeds, so that repeats can be paired."""
    for key in SEEDS:
        seeds = {value_at(combination.plain, key) for combination in found.combinations}
        if len(seeds) > 1:
            raise document.origin((MATRIX, REPEAT), key=True).error(
                f"'{REPEAT}' needs one '{key}' for all combinations, not "
                f"{' and '.join(map(str, sorted(seeds)))}"
            )


def _check_size(document: Document) -> None:
    """Refuse at once what would take long to look at."""
    product = math.prod(len(axis.steps) for axis in axes_of(document))
    included = len(entries_of(document, INCLUDE))
    if entries_of(document, EXCLUDE):
        if max(product, included) > MAX_PRODUCT:
            raise document.origin((MATRIX,), key=True).error(
                f"the matrix has {product} combinations; {MAX_PRODUCT} are the most that "
                f"'{EXCLUDE}' can choose from"
            )
    else:
        check_count(document, product + included if axes_of(document) else included or 1)
