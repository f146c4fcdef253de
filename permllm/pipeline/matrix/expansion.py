"""The combinations that a matrix asks for: its product, less ``exclude``, and ``include``."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from permllm.errors import UserError, did_you_mean
from permllm.fields.errors import Keys
from permllm.pipeline.document import Document, Origin
from permllm.pipeline.dotted_keys import (
    EXCLUDE,
    INCLUDE,
    MATRIX,
    REPEAT,
    RESERVED,
    by_depth,
    parts_of,
    place_value,
    value_of,
)
from permllm.pipeline.matrix.cells import Cell, repeated
from permllm.pipeline.matrix.labels import (
    combination_labels,
    repeat_labels,
    short_text,
    single_label,
)
from permllm.pipeline.matrix.shape import SEEDS, axes_of, check_count, included_places
from permllm.pipeline.plain import ABSENT, identity
from permllm.pipeline.resolving import Resolved, Resolver
from permllm.pipeline.schema import Pipeline

Choice = Mapping[str, Keys]
"""What a combination puts into the file, or an exclusion matches: dotted keys, and where in the
document their values stand."""


def base_of(document: Document, resolver: Resolver) -> Resolved:
    """What a document means without its matrix, whose shape was checked.

    What no pipeline can do without, and only the matrix has, gets the first value there.

    Raises:
        UserError: something does not fit; at its place.
    """
    base = document.without(MATRIX)
    firsts = {key: places[0] for key, places in axes_of(document).items()}
    for place in included_places(document):
        firsts.setdefault(str(place[-1]), place)
    missing = resolver.structurer.missing_keys(base, Pipeline) if firsts else ()
    for key in by_depth(firsts):
        parts = parts_of(key)
        if base.at(parts) is ABSENT and any(_on_one_way(parts, place) for place in missing):
            base = _with_value(base, document, key, firsts[key])
    return resolver.resolve(base)


def expand(
    document: Document, base: Resolved, resolver: Resolver
) -> tuple[dict[str, Any], tuple[Cell, ...]]:
    """Find out what a matrix asks for.

    Args:
        document: a pipeline file whose matrix has the right shape.
        base: what it means without the matrix.
        resolver: makes each combination.

    Returns:
        the same matrix with every default of its values spelled out, and its runs: the first
        key changes slowest, included combinations come last, and the repeats of a combination
        follow each other.

    Raises:
        UserError: a value or a combination does not fit or is there twice, an exclusion
            matches nothing, or there are too many runs; at its place.
    """
    work = _Expansion(document, base, resolver)
    exclusions = work.exclusions()
    product = work.remaining(exclusions)
    check_count(document, len(product) + len(work.included))
    combinations = [work.resolved(choice) for choice in product]
    included = range(len(work.included))
    combinations += [work.inclusion(index, exclusions) for index in included]
    origins = [work.origin(choice) for choice in product]
    origins += [document.origin((MATRIX, INCLUDE, index)) for index in included]
    _refuse_repetitions(combinations, origins)
    if REPEAT in document.data[MATRIX]:
        _refuse_other_seeds(document, combinations)
    repeat = document.data[MATRIX].get(REPEAT, 1)
    traits = [work.traits(choice) for choice in (*product, *work.included)]
    settings = combination_labels(traits, work.names(), single_label(base.pipeline))
    keys = dict.fromkeys([*work.axes, *(key for choice in work.included for key in choice)])
    labelled = zip(combinations, settings, repeat_labels(settings, repeat), strict=True)
    return work.resolved_matrix(exclusions), tuple(
        cell
        for combination, setting, labels in labelled
        for cell in repeated(combination, keys, setting, labels, repeat)
    )


class _Expansion:
    """A matrix on its way from values to combinations.

    Attributes:
        axes: the places of the values of each key.
        included: the combinations of ``include``.
        product: every combination of the axes.
        known: the place of each value of an axis, by its identity.
    """

    def __init__(self, document: Document, base: Resolved, resolver: Resolver) -> None:
        self.document, self.base, self.resolver = document, base, resolver
        self.matrix = document.data[MATRIX]
        self.made: dict[tuple[tuple[str, Keys], ...], Resolved] = {}
        self.values: dict[tuple[str, Keys], Any] = {}
        self.axes = axes_of(document)
        entries = self.matrix.get(INCLUDE, ())
        self.included = [self._included(index, entry) for index, entry in enumerate(entries)]
        product = itertools.product(*self.axes.values()) if self.axes or not entries else ()
        self.product = [dict(zip(self.axes, places, strict=True)) for places in product]
        self.known = {key: self._known(key, places) for key, places in self.axes.items()}

    def resolved(self, choice: Choice) -> Resolved:
        """The file with the values of a choice in place, made once."""
        steps = tuple((key, choice[key]) for key in by_depth(choice))
        if steps not in self.made:
            document = self.base.document
            for key, place in steps:
                document = _with_value(document, self.document, key, place)
            self.made[steps] = self.resolver.resolve(document)
        return self.made[steps]

    # --- values -----------------------------------------------------------------------

    def value(self, key: str, place: Keys) -> Any:
        """A value with its defaults, but without what other keys put into it."""
        if (key, place) not in self.values:
            value = value_of(self._possible(key, place).plain, key)
            # A deprecated option with its default is left out of resolved pipelines.
            self.values[key, place] = self.document.at(place) if value is ABSENT else value
        return self.values[key, place]

    def names(self) -> dict[str, dict[str, Any]]:
        """The values that have names of their own, by key and name."""
        return {
            key: {str(place[2]): self.value(key, place) for place in places}
            for key, places in self.axes.items()
            if isinstance(places[0][2], str)
        }

    def _possible(self, key: str, place: Keys) -> Resolved:
        """The first pipeline in which a value is valid: the file's own, or a combination."""
        refused: UserError | None = None
        for choice in self._with(key, place):
            try:
                return self.resolved(choice)
            except UserError as error:
                refused = refused or error
        assert refused is not None
        raise refused from None

    def _with(self, key: str, place: Keys) -> Iterator[Choice]:
        """Choices with a value: alone, and then with others."""
        yield {key: place}
        if place[1] == INCLUDE:
            yield self.included[int(place[2])]
        else:
            first = self.axes[key][0]
            yield from ({**each, key: place} for each in self.product if each[key] == first)

    def _known(self, key: str, places: Sequence[Keys]) -> dict[Hashable, Keys]:
        known: dict[Hashable, Keys] = {}
        for place in places:
            if known.setdefault(identity(self.value(key, place)), place) != place:
                raise self.document.origin(place).error(
                    f"the matrix has this value of '{key}' twice"
                )
        return known

    def _named(self, key: str, given: Any) -> Keys | None:
        """The place of the value of a key that has a name, if that is given."""
        place = (MATRIX, key, given)
        return place if isinstance(given, str) and place in self.axes.get(key, ()) else None

    # --- combinations -----------------------------------------------------------------

    def traits(self, choice: Choice) -> dict[str, Any]:
        """The values that may tell a combination apart: the axes', and its own."""
        traits = {key: self._trait(key, choice) for key in (*self.axes, *choice)}
        return {key: value for key, value in traits.items() if value is not ABSENT}

    def origin(self, choice: Choice) -> Origin:
        """What in the file asks for a combination of the product."""
        # The last value that is not the first one is what a reader would take out.
        others = [place for key, place in choice.items() if place != self.axes[key][0]]
        return self.document.origin(others[-1] if others else (MATRIX,), key=not others)

    def _trait(self, key: str, choice: Choice) -> Any:
        """A key's value in a combination: its own, or else the file's."""
        if key in choice:
            return self.value(key, choice[key])
        replaced = any(key.startswith(f"{other}.") for other in choice)
        return value_of((self.resolved(choice) if replaced else self.base).plain, key)

    # --- exclude and include ----------------------------------------------------------

    def exclusions(self) -> list[Choice]:
        """What the entries of ``exclude`` match.

        Raises:
            UserError: one names a value that its axis does not have.
        """
        return [
            {key: self._excluded(key, (MATRIX, EXCLUDE, index, key)) for key in entry}
            for index, entry in enumerate(self.matrix.get(EXCLUDE, ()))
        ]

    def remaining(self, exclusions: Sequence[Choice]) -> list[Choice]:
        """The combinations of the product that no exclusion matches.

        Raises:
            UserError: an exclusion takes nothing away, or nothing is left.
        """
        choices: list[Choice] = [*self.product]
        for index, exclusion in enumerate(exclusions):
            kept = [choice for choice in choices if not exclusion.items() <= choice.items()]
            if len(kept) == len(choices):
                raise self.document.origin((MATRIX, EXCLUDE, index)).error(
                    "this takes nothing away: those before it exclude the same runs"
                )
            choices = kept
        if not choices and not self.included:
            raise self.document.origin((MATRIX, EXCLUDE), key=True).error(
                "no run is left: every combination is excluded"
            )
        return choices

    def inclusion(self, index: int, exclusions: Sequence[Choice]) -> Resolved:
        """The combination of an entry of ``include``.

        Raises:
            UserError: it does not fit, or an exclusion matches it.
        """
        choice = self.included[index]
        combination = self.resolved(choice)
        traits = {key: identity(self._trait(key, choice)) for key in self.axes}
        places = {key: self.known[key].get(own) for key, own in traits.items()}
        for number, exclusion in enumerate(exclusions):
            if exclusion.items() <= places.items():
                line = self.document.origin((MATRIX, EXCLUDE, number)).line
                where = f" in line {line}" if line else ""
                raise self.document.origin((MATRIX, INCLUDE, index)).error(
                    f"'{EXCLUDE}'{where} would take this run away"
                )
        return combination

    def resolved_matrix(self, exclusions: Sequence[Choice]) -> dict[str, Any]:
        """The matrix as a resolved file has it."""
        axes = {key: [self.value(key, one) for one in places] for key, places in self.axes.items()}
        entries = {INCLUDE: self.included, EXCLUDE: exclusions}
        matrix: dict[str, Any] = axes | self.names()
        matrix |= {key: [*map(self._entry, some)] for key, some in entries.items() if some}
        return matrix | {key: self.matrix[key] for key in (REPEAT,) if key in self.matrix}

    def _entry(self, choice: Choice) -> dict[str, Any]:
        """A choice as a resolved file has it: by name, or by value."""
        return {
            key: place[2] if isinstance(place[2], str) else self.value(key, place)
            for key, place in choice.items()
        }

    def _included(self, index: int, entry: Mapping[str, Any]) -> Choice:
        return {
            key: self._named(key, given) or (MATRIX, INCLUDE, index, key)
            for key, given in entry.items()
        }

    def _excluded(self, key: str, place: Keys) -> Keys:
        """The value of an axis that is given at a place: by its name, or by what it means."""
        given = self.document.at(place)
        if named := self._named(key, given):
            return named
        try:
            known = self.known[key].get(identity(self.value(key, place)))
        except UserError:
            if isinstance(given, (dict, list)):
                raise
            known = None
        if known is None:
            values = [self.value(key, one) for one in self.axes[key]]
            texts = self.names().get(key) or map(short_text, values)
            raise self.document.origin(place).error(
                f"the matrix has no such value of '{key}'",
                did_you_mean(short_text(given), dict.fromkeys(texts)),
            )
        return known


def _with_value(base: Document, document: Document, key: str, place: Keys) -> Document:
    """``base`` with a value of ``document``'s matrix, which stands at a place, at a dotted key."""
    holder = place if place[1] in RESERVED else place[:2]
    return place_value(base, key, document.part(place), document.origin(holder, key=True))


def _on_one_way(one: Keys, other: Keys) -> bool:
    """Whether one of two places is the other or surrounds it."""
    size = min(len(one), len(other))
    return one[:size] == other[:size]


def _refuse_repetitions(combinations: Sequence[Resolved], origins: Sequence[Origin]) -> None:
    known: set[Hashable] = set()
    for combination, origin in zip(combinations, origins, strict=True):
        if (own := identity(combination.plain)) in known:
            raise origin.error(
                "the matrix has this run twice: with the other keys' values it comes to the same",
                f"leave one of them out; '{REPEAT}: 3' makes three runs of every combination",
            )
        known.add(own)


def _refuse_other_seeds(document: Document, combinations: Sequence[Resolved]) -> None:
    """Whether all combinations start from the same seeds, so that repeats can be paired."""
    for key in SEEDS:
        seeds = {value_of(combination.plain, key) for combination in combinations}
        if len(seeds) > 1:
            raise document.origin((MATRIX, REPEAT), key=True).error(
                f"'{REPEAT}' needs one '{key}' for all combinations, not "
                f"{' and '.join(map(str, sorted(seeds)))}"
            )
