"""The types that fields may have: one row for each.

How plain data is read and written, what a message calls a type and which JSON Schema it has
are made from :data:`TYPES`, and from nothing else.
"""

from __future__ import annotations

import collections.abc
import math
import re
import typing
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Protocol

import attrs

from permllm.components import KINDS
from permllm.core.durations import Duration
from permllm.core.patterns import Pattern
from permllm.errors import did_you_mean
from permllm.fields.errors import ERRORS, FieldError, at, each, shown

LARGEST = 2**63 - 1
"""The largest whole number that tensors hold; larger ones are refused everywhere."""

TAG = "source"
"""The key, and the class variable, that says which class of a union a mapping is of."""

Schema = dict[str, Any]


class Reading(Protocol):
    """What rows read with: :class:`permllm.fields.reading.Reader`."""

    def read(self, value: Any, hint: Any) -> Any:
        """A value of any type of the table."""

    def path(self, text: str) -> Path:
        """The path that a text names."""

    def component(self, value: Any, kind: str) -> Any:
        """A component of a kind."""

    def section(self, value: Any, cls: type) -> Any:
        """An attrs class of a mapping of its fields."""

    def fields(self, cls: Any, data: dict[str, Any], what: str, extra: tuple[str, ...]) -> Any:
        """The same, with words for an unknown key and keys that are known beside the fields."""


@attrs.frozen
class FieldType:
    """A kind of type that a field may have.

    Attributes:
        fits: whether a type hint is of this kind.
        words: the type in words that a reader of YAML knows.
        read: makes a value of plain data, strictly: true is no number, "3" is none either.
        schema: the JSON Schema of what is read; takes the hint and the schema of its parts.
            None where it is made of a class' fields.
        holds: whether a value of Python, such as a default, is of the type.
        parts: the types that it is made of.
        cls: the only type of this kind, where it is a class.
        as_text: plain data has its values as texts, rather than as they are.
    """

    fits: Callable[[Any], bool]
    words: Callable[[Any], str]
    read: Callable[[Any, Any, Reading], Any]
    schema: Callable[[Any, Callable[[Any], Schema]], Schema] | None
    holds: Callable[[Any, Any], bool] = isinstance
    parts: Callable[[Any], tuple[Any, ...]] = lambda hint: ()
    cls: type | None = None
    as_text: bool = False


def kind_of(hint: Any) -> FieldType | None:
    """The row of a type, or None if no field may have it."""
    return next((row for row in TYPES if row.fits(hint)), None)


def holds(value: Any, hint: Any) -> bool:
    """Whether a value of Python is of a type."""
    row = kind_of(hint)
    return row is not None and row.holds(value, hint)


def type_text(hint: Any) -> str:
    """A type in words that a reader of YAML knows."""
    row = kind_of(hint)
    return row.words(hint) if row else "a value"


def expected(hint: Any, value: Any, advice: str | None = None) -> FieldError:
    """The error that a value is not of a type."""
    return FieldError(f"expected {type_text(hint)}, not {shown(value)}", advice)


def is_scalar(value: Any) -> bool:
    """Whether a value is a text, a number, true or false."""
    return value is not None and not isinstance(value, (list, dict))


def component_kind(hint: Any) -> str | None:
    """The registry's name of a kind of component if ``hint`` is its base class."""
    return next((kind for kind, base in KINDS.items() if hint is base), None)


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return typing.get_args(hint)
    return (hint,)


def tag_of(cls: Any) -> str | None:
    """What a mapping says of itself to be made a class that is one of several."""
    tag = getattr(cls, TAG, None)
    return tag if isinstance(tag, str) else None


# --- single values -------------------------------------------------------------------------


def _scalar(
    cls: Any,
    words: str,
    schema: Schema,
    read: Callable[[Any, Any, Reading], Any],
    *,
    as_text: bool = False,
    holds: Callable[[Any, Any], bool] = isinstance,
) -> FieldType:
    return FieldType(
        fits=lambda hint: hint is cls,
        words=lambda hint: words,
        read=read,
        schema=lambda hint, of: dict(schema),
        holds=holds,
        cls=None if cls is Any else cls,
        as_text=as_text,
    )


def _instance(value: Any, hint: Any, reader: Reading) -> Any:
    if not isinstance(value, hint):
        quotes = "put it in quotes" if hint is str and is_scalar(value) else None
        raise expected(hint, value, quotes)
    return value


def _whole(value: Any, hint: Any, reader: Reading) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise expected(int, value)
    if abs(value) > LARGEST:
        raise FieldError(f"{str(value)[:20]}… is too large; the largest whole number is {LARGEST}")
    return value


def _number(value: Any, hint: Any, reader: Reading) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise expected(float, value)
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise FieldError(f"expected a finite number of usual size, not {shown(value)}")
    return float(value)


def _is_number(value: Any, hint: Any) -> bool:
    """Whether a number is of a type; whole ones are numbers, too, and true is neither."""
    return isinstance(value, (hint, int)) and not isinstance(value, bool)


def _any_holds(value: Any, hint: Any) -> bool:
    return any(holds(value, member) for member in members(hint))


def _path(value: Any, hint: Any, reader: Reading) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise expected(Path, value)
    return reader.path(value)


def _parsed(advice: str | None = None) -> Callable[[Any, Any, Reading], Any]:
    """Reads what a class parses of a text."""

    def read(value: Any, hint: Any, reader: Reading) -> Any:
        if not isinstance(value, str):
            raise expected(hint, value, advice if is_scalar(value) else None)
        try:
            return hint.parse(value)
        except ValueError as error:
            raise FieldError(str(error)) from error

    return read


def _choice(value: Any, hint: Any, reader: Reading) -> Any:
    for choice in typing.get_args(hint):
        if value == choice and type(value) is type(choice):
            return choice
    raise expected(hint, value)


# --- types that are made of others ---------------------------------------------------------


def _element(hint: Any) -> tuple[Any, ...]:
    """``T`` of ``tuple[T, ...]``, ``list[T]`` or ``Sequence[T]``; empty for another type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return args[:1]
    lists = (list, collections.abc.Sequence, collections.abc.Iterable)
    return args if origin in lists else ()


def _mapped(hint: Any) -> tuple[Any, ...]:
    """``T`` of ``dict[str, T]`` or ``Mapping[str, T]``; empty for another type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    return args[1:] if origin in (dict, collections.abc.Mapping) and args[0] is str else ()


def _is_tagged(hint: Any) -> bool:
    return len(members(hint)) > 1 and all(map(tag_of, members(hint)))


def sequence(value: Any, hint: Any, reader: Reading) -> tuple[Any, ...]:
    """The items of a list."""
    if not isinstance(value, list):
        raise expected(hint, value, "write it as [a, b]" if is_scalar(value) else None)
    (inner,) = _element(hint)
    return tuple(each(enumerate(value), lambda index, item: reader.read(item, inner)))


def _mapping(value: Any, hint: Any, reader: Reading) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise expected(hint, value)
    (inner,) = _mapped(hint)
    return dict(each(value.items(), lambda key, item: (key, reader.read(item, inner))))


def _union(value: Any, hint: Any, reader: Reading) -> Any:
    options = [member for member in members(hint) if member is not NoneType]
    if value is None and len(options) < len(members(hint)):
        return None
    if len(options) == 1:
        return reader.read(value, options[0])
    for option in options:
        try:
            return reader.read(value, option)
        except ERRORS:
            continue
    raise expected(hint, value)


def _tagged(value: Any, hint: Any, reader: Reading) -> Any:
    """One of several classes, which a mapping says: where the model comes from."""
    classes = {str(tag_of(cls)): cls for cls in members(hint)}
    listing = ", ".join(classes)
    if not isinstance(value, dict):
        raise FieldError(
            f"expected a mapping with '{TAG}' (one of {listing}), not {shown(value)}",
            f"for example {{{TAG}: directory, path: my-model}}",
        )
    tag = value.get(TAG)
    if tag is None:
        raise FieldError(f"'{TAG}' is missing; it is one of {listing}")
    if not isinstance(tag, str) or tag not in classes:
        raise at(TAG, FieldError(f"unknown {TAG} {tag!r}", did_you_mean(str(tag), classes)))
    options = {key: item for key, item in value.items() if key != TAG}
    return reader.fields(classes[tag], options, f"key {{}} of a model from '{tag}'", (TAG,))


def _any_of(hint: Any, of: Callable[[Any], Schema]) -> Schema:
    return {"anyOf": [of(member) for member in members(hint)]}


def _plural(text: str) -> str:
    """Words for several of a type; what has no article stays.

    >>> _plural("a list of numbers"), _plural("a number or null"), _plural("true or false")
    ('lists of numbers', 'numbers or null', 'true or false')
    """
    return re.sub(r"(?:^|(?<= or ))an? ([\w ]+?)(?= of | such as | or |$)", r"\1s", text)


def _mapping_words(hint: Any) -> str:
    (inner,) = _mapped(hint)
    return "a mapping" if inner is Any else f"a mapping of texts to {_plural(type_text(inner))}"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


_PATTERN = {"type": "string", "pattern": r"^[0-9]+:[0-9]+$"}
_DURATION = {"type": "string", "pattern": r"^([0-9.]+h)?([0-9.]+m)?([0-9.]+s)?$"}

TYPES: tuple[FieldType, ...] = (
    _scalar(bool, "true or false", {"type": "boolean"}, _instance),
    _scalar(int, "a whole number", {"type": "integer"}, _whole, holds=_is_number),
    _scalar(float, "a number", {"type": "number"}, _number, holds=_is_number),
    _scalar(str, "a text", {"type": "string"}, _instance),
    _scalar(Path, "a path", {"type": "string", "minLength": 1}, _path, as_text=True),
    _scalar(Pattern, 'a pattern such as "2:4"', _PATTERN, _parsed(), as_text=True),
    _scalar(
        Duration, "a time such as 30s or 5m", _DURATION, _parsed("write 90s or 5m"), as_text=True
    ),
    _scalar(NoneType, "null", {"type": "null"}, _instance),
    _scalar(Any, "a value", {}, lambda value, hint, reader: value, holds=lambda *_: True),
    FieldType(
        fits=lambda hint: typing.get_origin(hint) is Literal,
        words=lambda hint: " or ".join(map(repr, typing.get_args(hint))),
        read=_choice,
        schema=lambda hint, of: {"enum": list(typing.get_args(hint))},
        holds=lambda value, hint: value in typing.get_args(hint),
    ),
    FieldType(
        fits=_is_tagged,
        words=lambda hint: "a mapping",
        read=_tagged,
        schema=_any_of,
        holds=_any_holds,
        parts=members,
    ),
    FieldType(
        fits=lambda hint: len(members(hint)) > 1,
        words=lambda hint: " or ".join(map(type_text, members(hint))),
        read=_union,
        schema=_any_of,
        holds=_any_holds,
        parts=members,
    ),
    FieldType(
        fits=lambda hint: bool(_element(hint)),
        words=lambda hint: f"a list of {_plural(type_text(*_element(hint)))}",
        read=sequence,
        schema=lambda hint, of: {"type": "array", "items": of(*_element(hint))},
        holds=lambda value, hint: (
            isinstance(value, (list, tuple)) and all(holds(item, *_element(hint)) for item in value)
        ),
        parts=_element,
    ),
    FieldType(
        fits=lambda hint: bool(_mapped(hint)),
        words=_mapping_words,
        read=_mapping,
        schema=lambda hint, of: {"type": "object", "additionalProperties": of(*_mapped(hint))},
        holds=lambda value, hint: (
            isinstance(value, collections.abc.Mapping)
            and all(holds(item, *_mapped(hint)) for item in value.values())
        ),
        parts=_mapped,
    ),
    FieldType(
        fits=lambda hint: component_kind(hint) is not None,
        words=lambda hint: _with_article(str(component_kind(hint))),
        read=lambda value, hint, reader: reader.component(value, str(component_kind(hint))),
        schema=lambda hint, of: {"$ref": f"#/$defs/{component_kind(hint)}"},
    ),
    FieldType(
        fits=lambda hint: isinstance(hint, type) and attrs.has(hint),
        words=lambda hint: "a mapping",
        read=lambda value, hint, reader: reader.section(value, hint),
        schema=None,
    ),
)
"""Every type that a field may have; the first row that fits counts."""
