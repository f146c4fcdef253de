"""The combinations that a matrix asks for: its product, less ``exclude``, and ``include``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from permllm.errors import UserError, did_you_mean
from permllm.pipeline.deprecations import warn_of_deprecated
from permllm.pipeline.document import Document, Keys, Origin
from permllm.pipeline.dotted_keys import EXCLUDE, INCLUDE, MATRIX, REPEAT
from permllm.pipeline.lookup import Lookup
from permllm.pipeline.matrix.axes import (
    ABSENT,
    Axis,
    axes_of,
    base_document,
    by_depth,
    check_count,
    entries_of,
    value_at,
    with_value,
)
from permllm.pipeline.matrix.labels import Names, identity, short_text
from permllm.pipeline.schema import Pipeline
from permllm.pipeline.structuring import structure
from permllm.pipeline.unstructuring import resolved

Place = tuple[int, ...]
"""A combination of the product: the index of the value of each axis."""

Exclusion = Mapping[str, int]
"""What an entry of ``exclude`` matches: keys of axes and indices of their values."""


@attrs.frozen(eq=False)
class Combination:
    """One setting of a matrix.

    Attributes:
        told: the dotted keys that may tell it apart, with their resolved plain values.
        pipeline: what it does, without a matrix.
        plain: the same as plain data with every default spelled out.
        origin: what in the file asks for it.
    """

    told: dict[str, Any]
    pipeline: Pipeline
    plain: dict[str, Any]
    origin: Origin


@attrs.frozen(eq=False)
class Expanded:
    """A matrix worked out.

    Attributes:
        matrix: the same matrix with every default of its values spelled out.
        names: the values that have names of their own.
        keys: every dotted key that some run has from the matrix.
        combinations: the product's, the first key slowest, and then the included ones.
    """

    matrix: dict[str, Any]
    names: Names
    keys: tuple[str, ...]
    combinations: tuple[Combination, ...]


def work_out(document: Document, registry: Lookup, base_dir: Path) -> Expanded:
    """Find out what a matrix asks for.

    Args:
        document: a pipeline file whose matrix has the right shape.
        registry: where components are looked up.
        base_dir: the folder that relative paths start from.

    Raises:
        UserError: a value or a combination does not fit or is there twice, or an
            exclusion matches nothing; at its place.
    """
    work = _Expansion(document, registry, base_dir)
    exclusions = [work.exclusion(index) for index in range(len(entries_of(document, EXCLUDE)))]
    places = work.remaining(exclusions)
    check_count(document, len(places) + len(entries_of(document, INCLUDE)))
    combinations = [work.combination(place) for place in places]
    included = [
        work.included(index, exclusions) for index in range(len(entries_of(document, INCLUDE)))
    ]
    combinations += [combination for combination, _ in included]
    _refuse_repetitions(combinations)
    entries = [entry for _, entry in included]
    matrix: dict[str, Any] = {key: work.resolved_axis(key) for key in work.axes}
    if entries:
        matrix[INCLUDE] = entries
    if exclusions:
        matrix[EXCLUDE] = [work.resolved_exclusion(exclusion) for exclusion in exclusions]
    if REPEAT in document.data[MATRIX]:
        matrix[REPEAT] = document.data[MATRIX][REPEAT]
    names = {
        key: dict(zip(map(str, axis.steps), work.values[key], strict=True))
        for key, axis in work.axes.items()
        if axis.named
    }
    keys = dict.fromkeys([*work.values, *(key for entry in entries for key in entry)])
    return Expanded(matrix, names, tuple(keys), tuple(combinations))


@attrs.frozen(eq=False)
class _Resolved:
    """A document with what it means."""

    document: Document
    pipeline: Pipeline
    plain: dict[str, Any]


class _Expansion:
    """A matrix on its way from values to combinations.

    Attributes:
        axes: its axes.
        values: the resolved plain values of each.
    """

    def __init__(self, document: Document, registry: Lookup, base_dir: Path) -> None:
        self.document, self.registry, self.base_dir = document, registry, base_dir
        self.axes = {axis.key: axis for axis in axes_of(document)}
        self.base = self._resolve(base_document(document, registry, base_dir))
        self.cells: dict[Place, _Resolved] = {}
        self.values: dict[str, list[Any]] = {}
        # A document in which each value is valid, to compare others with it there.
        self.settings: dict[str, list[Document]] = {}
        for key, axis in self.axes.items():
            self._read_axis(key, axis)

    # --- the product ----------------------------------------------------------------

    def remaining(self, exclusions: Sequence[Exclusion]) -> list[Place]:
        """The combinations of the product that no exclusion matches.

        Raises:
            UserError: an exclusion takes nothing away, or nothing is left.
        """
        if not self.axes and entries_of(self.document, INCLUDE):
            return []
        places = list(self._product())
        for index, exclusion in enumerate(exclusions):
            kept = [place for place in places if not self._matches(exclusion, place)]
            if len(kept) == len(places):
                raise self.document.origin((MATRIX, EXCLUDE, index)).error(
                    "this takes nothing away: those before it exclude the same runs"
                )
            places = kept
        if not places and not entries_of(self.document, INCLUDE):
            raise self.document.origin((MATRIX, EXCLUDE), key=True).error(
                "no run is left: every combination is excluded"
            )
        return places

    def combination(self, place: Place) -> Combination:
        """A combination of the product."""
        cell = self._cell(place)
        told = {key: self.values[key][index] for key, index in zip(self.axes, place, strict=True)}
        origin = self.document.origin((MATRIX,), key=True)
        for axis, index in zip(self.axes.values(), place, strict=True):
            # The last value that is not the first one is what a reader would take out.
            origin = self.document.origin(axis.place(index)) if index else origin
        return Combination(told, cell.pipeline, cell.plain, origin)

    def resolved_axis(self, key: str) -> Any:
        """The values of an axis as a resolved file has them."""
        values, axis = self.values[key], self.axes[key]
        return dict(zip(axis.steps, values, strict=True)) if axis.named else values

    def _product(self) -> Iterator[Place]:
        return itertools.product(*(range(len(axis.steps)) for axis in self.axes.values()))

    def _cell(self, place: Place) -> _Resolved:
        if place not in self.cells:
            chosen = dict(zip(self.axes, place, strict=True))
            cell = self.base.document
            for key in by_depth(self.axes):
                cell = with_value(cell, self.document, key, self.axes[key].place(chosen[key]))
            self.cells[place] = self._resolve(cell)
        return self.cells[place]

    def _read_axis(self, key: str, axis: Axis) -> None:
        self.values[key], self.settings[key] = [], []
        for index in range(len(axis.steps)):
            found = self._setting(key, axis, index)
            value = value_at(found.plain, key)
            if value is ABSENT:
                # A deprecated option with its default, which resolved pipelines leave out.
                value = self.document.part(axis.place(index)).data
            if identity(value) in map(identity, self.values[key]):
                raise self.document.origin(axis.place(index)).error(
                    f"the matrix has this value of '{key}' twice"
                )
            self.values[key].append(value)
            self.settings[key].append(found.document)

    def _setting(self, key: str, axis: Axis, index: int) -> _Resolved:
        """The first pipeline in which a value is valid: the file's own, or a combination."""
        alone = with_value(self.base.document, self.document, key, axis.place(index))
        try:
            return self._resolve(alone)
        except UserError as error:
            position = list(self.axes).index(key)
            for place in self._product():
                if place[position] == index:
                    try:
                        return self._cell(place)
                    except UserError:
                        continue
            raise error from None

    # --- exclude --------------------------------------------------------------------

    def exclusion(self, entry: int) -> Exclusion:
        """The values that an entry of ``exclude`` matches.

        Raises:
            UserError: it names a value that its axis does not have.
        """
        keys = entries_of(self.document, EXCLUDE)[entry]
        return {key: self._index(key, (MATRIX, EXCLUDE, entry, key)) for key in keys}

    def resolved_exclusion(self, exclusion: Exclusion) -> dict[str, Any]:
        """An entry of ``exclude`` as a resolved file has it: by name, or by value."""
        return {
            key: self.axes[key].steps[index] if self.axes[key].named else self.values[key][index]
            for key, index in exclusion.items()
        }

    def _matches(self, exclusion: Exclusion, place: Sequence[int | None]) -> bool:
        chosen = dict(zip(self.axes, place, strict=True))
        return all(chosen[key] == index for key, index in exclusion.items())

    def _index(self, key: str, place: Keys) -> int:
        """Which value of an axis stands at a place: by its name, or by equality."""
        axis, given = self.axes[key], self.document.part(place).data
        if axis.named and given in axis.steps:
            return axis.steps.index(given)
        if (known := self._known(key, given)) is not None:
            return known
        refused: UserError | None = None
        for index, setting in enumerate(self.settings[key]):
            try:
                found = self._resolve(with_value(setting, self.document, key, place))
            except UserError as error:
                refused = refused or error
                continue
            if identity(value_at(found.plain, key)) == identity(self.values[key][index]):
                return index
        if refused is not None and isinstance(given, (dict, list)):
            raise refused
        texts = axis.steps if axis.named else map(short_text, self.values[key])
        raise self.document.origin(place).error(
            f"the matrix has no such value of '{key}'",
            did_you_mean(short_text(given), dict.fromkeys(map(str, texts))),
        )

    # --- include --------------------------------------------------------------------

    def included(
        self, index: int, exclusions: Sequence[Exclusion]
    ) -> tuple[Combination, dict[str, Any]]:
        """The combination of an entry of ``include``, and the entry as a resolved file has it.

        Raises:
            UserError: it does not fit, or would be excluded.
        """
        entry, here = entries_of(self.document, INCLUDE)[index], (MATRIX, INCLUDE, index)
        places = {key: self._value_place(key, (*here, key)) for key in entry}
        document = self.base.document
        for key in by_depth(entry):
            document = with_value(document, self.document, key, places[key])
        cell = self._resolve(document)
        own = {key: self._own_value(key, places[key], cell) for key in entry}
        axes = {key: self._effective(key, own, cell) for key in self.axes}
        told = {key: value for key, value in axes.items() if value is not ABSENT} | own
        chosen = [self._known(key, value) for key, value in axes.items()]
        for number, exclusion in enumerate(exclusions):
            if self._matches(exclusion, chosen):
                line = self.document.origin((MATRIX, EXCLUDE, number)).line
                where = f" in line {line}" if line else ""
                raise self.document.origin(here).error(
                    f"'{EXCLUDE}'{where} would take this run away"
                )
        kept = {
            key: places[key][-1] if places[key][1] != INCLUDE else value
            for key, value in own.items()
        }
        return Combination(told, cell.pipeline, cell.plain, self.document.origin(here)), kept

    def _value_place(self, key: str, place: Keys) -> Keys:
        """Where an included value stands, which may be given by its name."""
        axis, given = self.axes.get(key), self.document.part(place).data
        named = axis is not None and axis.named and isinstance(given, str) and given in axis.steps
        return (MATRIX, key, given) if named else place

    def _own_value(self, key: str, place: Keys, cell: _Resolved) -> Any:
        """A value of ``include`` with its defaults, but without what other keys put into it."""
        try:
            alone = self._resolve(with_value(self.base.document, self.document, key, place))
        except UserError:
            return value_at(cell.plain, key)
        return value_at(alone.plain, key)

    def _effective(self, key: str, own: Mapping[str, Any], cell: _Resolved) -> Any:
        """An axis' value in an included combination: its own, or else the file's."""
        if key in own:
            return own[key]
        replaced = any(key.startswith(f"{other}.") for other in own)
        return value_at((cell if replaced else self.base).plain, key)

    def _known(self, key: str, value: Any) -> int | None:
        """The index of a resolved value of an axis, or None if it has no such value."""
        if value is not ABSENT:
            for index, known in enumerate(self.values[key]):
                if identity(known) == identity(value):
                    return index
        return None

    def _resolve(self, document: Document) -> _Resolved:
        pipeline = structure(document, Pipeline, self.registry, self.base_dir)
        warn_of_deprecated(document, pipeline)
        return _Resolved(document, pipeline, resolved(pipeline, self.registry))


def _refuse_repetitions(combinations: Sequence[Combination]) -> None:
    found: set[str] = set()
    for combination in combinations:
        if identity(combination.plain) in found:
            raise combination.origin.error(
                "the matrix has this run twice: with the other keys' values it comes to the same",
                f"leave one of them out; '{REPEAT}: 3' makes three runs of every combination",
            )
        found.add(identity(combination.plain))
