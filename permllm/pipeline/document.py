"""Plain data that remembers where every key and value stands."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import attrs

from permllm.errors import UserError
from permllm.fields.errors import Keys
from permllm.pipeline.plain import value_at


@attrs.frozen
class Origin:
    """Where a piece of a pipeline came from: a place in a file, or a ``--set``."""

    file: str | None = None
    line: int | None = None
    column: int | None = None
    setting: str | None = None

    def error(self, message: str, hint: str | None = None) -> UserError:
        """An error at this place."""
        if self.setting is not None:
            return UserError(f"--set {self.setting}: {message}", hint=hint)
        return UserError(message, file=self.file, line=self.line, column=self.column, hint=hint)

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sorts places as they are read: the file top to bottom, then settings."""
        return (self.setting is not None, self.line or 0, self.column or 0)


@attrs.frozen
class Document:
    """Plain data (mappings with string keys, lists, scalars) and the origins of its parts.

    Attributes:
        data: the data.
        values: the origin of each value that was read, by where it stood; ``()`` is the root.
        keys: the origin of each mapping's key, by where its value stood.
        root: where ``data`` stands among these.
        grafts: parts that were put in later, the latest first: where, what, and the origin
            of its key. To look them up costs little, and mistakes are rare; copies of
            ``values`` for every run of a matrix cost much.
    """

    data: Any
    values: Mapping[Keys, Origin]
    keys: Mapping[Keys, Origin] = attrs.field(factory=dict)
    root: Keys = ()
    grafts: tuple[tuple[Keys, Document, Origin], ...] = ()

    def origin(self, place: Keys, *, key: bool = False) -> Origin:
        """The origin of a value (or its key), or of the nearest thing that surrounds it."""
        place = (*self.root, *place)
        for at, part, its_key in self.grafts:
            if place[: len(at)] == at:
                inside = place[len(at) :]
                return its_key if key and not inside else part.origin(inside, key=key)
        if key and place in self.keys:
            return self.keys[place]
        while place not in self.values:
            place = place[:-1]
        return self.values[place]

    def at(self, place: Keys) -> Any:
        """The value at a place, or :data:`ABSENT`."""
        return value_at(self.data, place)

    def part(self, place: Keys) -> Document:
        """The document below a place."""
        return attrs.evolve(self, data=self.at(place), root=(*self.root, *place))

    def without(self, key: str) -> Document:
        """A copy that lacks one key of the root."""
        data = {other: value for other, value in self.data.items() if other != key}
        return attrs.evolve(self, data=data)

    def with_part(self, place: Keys, part: Document, key: Origin) -> Document:
        """A copy with another part at a place, whose surroundings have to exist.

        What is not on the way to the place is shared with the copy.

        Args:
            place: where it goes.
            part: what goes there.
            key: the origin of the key that it gets.
        """
        if not place:
            return part
        data = copy.copy(self.data)
        inner = data
        for step in place[:-1]:
            inner[step] = copy.copy(inner[step])
            inner = inner[step]
        inner[place[-1]] = part.data
        graft = ((*self.root, *place), part, key)
        return attrs.evolve(self, data=data, grafts=(graft, *self.grafts))


def plain_document(data: Any, origin: Origin) -> Document:
    """Plain data that all has one origin."""
    return Document(data, {(): origin})
