"""What does not fit in a pipeline file, and where: from exceptions to a ``UserError``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    IterableValidationError,
)

from permllm.errors import UserError
from permllm.pipeline.document import Document, Keys
from permllm.pipeline.options import type_text


class FieldError(Exception):
    """A value that does not fit.

    Attributes:
        message, hint: as in :class:`UserError`.
        at_key: the key is what is wrong, not its value.
        missing: the file has no such key; said last, since a misspelt one may be the reason.
    """

    def __init__(
        self, message: str, hint: str | None = None, *, at_key: bool = False, missing: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.at_key = at_key
        self.missing = missing


def expected(hint: Any, value: Any, advice: str | None = None) -> FieldError:
    """The error that a value is not of a type."""
    return FieldError(f"expected {type_text(hint)}, not {shown(value)}", advice)


def shown(value: Any) -> str:
    """A value as a message shows it: ``the text 'abc'``, ``true``, ``a list``."""
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    return str(value)[:60]


def noted(error: Exception, note: str) -> Exception:
    """The error with cattrs' note of the key or index that it is at."""
    error.add_note(note)
    return error


def of_default(key: str, error: Exception) -> FieldError:
    """The error that a key's default, which no file spells, cannot be made."""
    leaf = next(inner for _, inner in leaves(error, ()))
    message = getattr(leaf, "message", str(leaf))
    hint = getattr(leaf, "hint", None)
    return FieldError(f"the default of '{key}' cannot be used: {message}", hint, missing=True)


def first_error(document: Document, error: Exception) -> UserError:
    """The error that a reader of the file meets first, at its place.

    Args:
        document: where everything stands.
        error: a tree of exceptions with cattrs' notes, or one exception.
    """
    found = [_placed(document, place, leaf) for place, leaf in leaves(error, ())]
    return min(found, key=lambda pair: pair[0])[1]


def leaves(error: Exception, place: Keys) -> Iterator[tuple[Keys, Exception]]:
    """The errors of a tree of exceptions, each with the path that cattrs noted.

    Args:
        error: a tree of exceptions with cattrs' notes, or one exception.
        place: where its root stands.
    """
    if not isinstance(error, (ClassValidationError, IterableValidationError)):
        yield place, error
        return
    located, others = error.group_exceptions()
    for inner, note in located:
        key = note.name if isinstance(note, AttributeValidationNote) else note.index
        yield from leaves(inner, (*place, key))
    for inner in others:
        yield from leaves(inner, place)


def _placed(document: Document, place: Keys, error: Exception) -> tuple[Any, UserError]:
    origin = document.origin(place, key=getattr(error, "at_key", False))
    message = getattr(error, "message", str(error))
    order = (getattr(error, "missing", False), origin.order)
    return order, origin.error(message, getattr(error, "hint", None))
