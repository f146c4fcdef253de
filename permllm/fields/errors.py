"""What does not fit a field: exceptions that carry the way to what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from cattrs.errors import BaseValidationError, IterableValidationError, IterableValidationNote

T = TypeVar("T")
Item = TypeVar("Item")

Keys = tuple[str | int, ...]
"""Where a value stands: keys of mappings and indices of lists, from the root."""


class FieldError(Exception):
    """A value that does not fit.

    Attributes:
        message, hint: as in :class:`permllm.errors.UserError`.
        at_key: the key is what is wrong, not its value.
        missing: the data has no such key; said last, since a misspelt one may be the reason.
    """

    def __init__(
        self, message: str, hint: str | None = None, *, at_key: bool = False, missing: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.at_key = at_key
        self.missing = missing


ERRORS = (FieldError, BaseValidationError)
"""What may be raised where something does not fit: one error, or a tree of them."""


MOST_ERRORS = 100
"""After so many in one list or mapping, the others are not looked for."""


def each(pairs: Iterable[tuple[Any, Item]], make: Callable[[Any, Item], T]) -> list[T]:
    """What ``make`` gives for each key and item; raises the errors of all together."""
    made, errors = [], []
    for key, item in pairs:
        try:
            made.append(make(key, item))
        except ERRORS as error:
            errors.append(under(key, error))
            if len(errors) == MOST_ERRORS:
                break
    if errors:
        raise IterableValidationError("parts that do not fit", errors, object)
    return made


def under(key: str | int, error: Exception) -> Exception:
    """The error with cattrs' note of the key or index below which it is."""
    error.add_note(IterableValidationNote(f"at {key}", key, object))
    return error


def at(key: str, error: FieldError) -> Exception:
    """The error as one of a mapping's key, where its mapping is made as a whole."""
    return IterableValidationError(error.message, [under(key, error)], object)


def leaves(error: Exception, place: Keys = ()) -> Iterator[tuple[Keys, Exception]]:
    """The errors of a tree of exceptions, each with the path that was noted.

    Args:
        error: a tree of exceptions with cattrs' notes, or one exception.
        place: where its root stands.
    """
    if not isinstance(error, IterableValidationError):
        yield place, error
        return
    for inner, note in error.group_exceptions()[0]:
        yield from leaves(inner, (*place, note.index))


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
