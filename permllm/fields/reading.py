"""Plain data to attrs classes, strictly, with the way to whatever does not fit.

cattrs dispatches on types and carries the way to an error in a tree of exceptions; the rows of
:data:`permllm.fields.types.TYPES` are its hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from cattrs import Converter

from permllm.errors import UserError, did_you_mean
from permllm.fields.declared import REFERENCE, default_of, key_of, option_fields
from permllm.fields.errors import ERRORS, FieldError, at, each, leaves, shown
from permllm.fields.once import Once
from permllm.fields.options import check_range, option_types
from permllm.fields.types import TYPES, FieldType, members, type_text
from permllm.files import can_exist


class Placed(str):
    """A text whose relative path starts from a folder of its own.

    Attributes:
        folder: that folder.
    """

    folder: Path

    def __new__(cls, text: str, folder: Path) -> Placed:
        made = super().__new__(cls, text)
        made.folder = folder
        return made


class Reader:
    """Makes values of plain data, of the very same list or mapping once.

    Args:
        base_dir: the folder that relative paths start from.
    """

    def __init__(self, base_dir: Path = Path()) -> None:
        self.base_dir = base_dir
        self.converter = Converter()
        self._once = Once()
        # Later registrations are tried first.
        for row in reversed(TYPES):
            if row.cls is None:
                self.when(row.fits, self._reads(row))
            else:
                self.converter.register_structure_hook(row.cls, self._reads(row))

    def read(self, value: Any, hint: Any) -> Any:
        """A value of a type.

        Raises:
            FieldError: it does not fit; or a tree of such errors.
        """
        if isinstance(value, Placed) and Path not in members(hint):
            value = str(value)
        return self.converter.structure(value, hint)

    def when(self, fits: Callable[[Any], bool], read: Callable[[Any, Any], Any]) -> None:
        """Read types that fit so, rather than in the way that was registered before."""
        self.converter.register_structure_hook_func(fits, partial(self._shared, read))

    def _reads(self, row: FieldType) -> Callable[[Any, Any], Any]:
        return lambda value, hint: row.read(value, hint, self)

    def _shared(self, read: Callable[[Any, Any], Any], value: Any, hint: Any) -> Any:
        if isinstance(value, (dict, list)):
            return self._once(lambda: read(value, hint), value, hint)
        return read(value, hint)

    def path(self, text: str) -> Path:
        """The absolute path that a text names."""
        try:
            folder = text.folder if isinstance(text, Placed) else self.base_dir
            path = (folder / Path(text).expanduser()).absolute()
        except (RuntimeError, UnicodeEncodeError) as error:
            raise FieldError(f"{shown(text)} is no path: {error}") from error
        if not can_exist(path):
            raise FieldError(f"{shown(text)} is no path: no file can be called so")
        return path

    def component(self, value: Any, kind: str) -> Any:
        """A component of a kind."""
        raise FieldError(f"there is no {kind} to be had here")

    def section(self, value: Any, cls: type) -> Any:
        """An attrs class of a mapping of its fields, or of nothing."""
        if value is not None and not isinstance(value, dict):
            raise FieldError(f"expected a mapping, not {shown(value)}")
        return self.fields(cls, value or {}, "key {}", ())

    def fields(self, cls: Any, data: dict[str, Any], what: str, extra: tuple[str, ...]) -> Any:
        """An attrs class of its fields' data.

        Args:
            cls: the class.
            data: plain data by key.
            what: names a key in messages, such as ``"option {} of metric 'ria'"``.
            extra: keys that are known beside the fields.
        """
        hints = option_types(cls)

        def make(key: str, field: attrs.Attribute[Any] | None) -> dict[str, Any]:
            if field is not None:
                return self._field(field, key, hints[key], data)
            near = did_you_mean(key, [*hints, *extra])
            raise FieldError(f"unknown {what.format(repr(key))}", near, at_key=True)

        fields = {key_of(field): field for field in option_fields(cls)}
        strangers = [key for key in data if key not in fields]
        parts = each([*((key, None) for key in strangers), *fields.items()], make)
        values = {key: value for part in parts for key, value in part.items()}
        try:
            return cls(**values)
        except UserError as error:
            raise FieldError(error.message, error.hint) from error
        except Exception as error:
            # A component's own validators may be anybody's code.
            raise self._refused(cls, error) from error

    def owner(self, cls: type) -> str:
        """What a class came with, for messages."""
        return cls.__module__

    def _field(
        self, field: attrs.Attribute[Any], key: str, hint: Any, data: dict[str, Any]
    ) -> dict[str, Any]:
        """``{key: value}``, or nothing where the class' own default is to stand."""
        if key in data:
            value = self.read(data[key], hint)
            check_range(key, data[key], field.metadata)
            return {key: value}
        if REFERENCE in field.metadata:
            try:
                return {key: self.read(default_of(field), hint)}
            except ERRORS as error:
                raise _of_default(key, error) from None
        if field.default is attrs.NOTHING:
            meaning = field.metadata.get("help", type_text(hint))
            raise FieldError(f"'{key}' is missing: {meaning}", missing=True)
        return {}

    def _refused(self, cls: type, error: Exception) -> Exception:
        """What a class' own validators say, at the key that they name first."""
        message = str(error.args[0] if error.args else error)
        if not isinstance(error, (TypeError, ValueError)):
            message = f"{self.owner(cls)} broke: {type(error).__name__}: {message}"
        word = message.split(" ", 1)[0].strip("'\"`:")
        wrong = FieldError(message)
        return at(word, wrong) if word in option_types(cls) else wrong


STRICT = {cls: Reader().read for cls in (bool, int, float, str)}
"""How the types are read whose values Python and YAML spell alike."""


def _of_default(key: str, error: Exception) -> FieldError:
    """The error that a key's default, which no file spells, cannot be made."""
    leaf = next(inner for _, inner in leaves(error))
    message, hint = getattr(leaf, "message", str(leaf)), getattr(leaf, "hint", None)
    return FieldError(f"the default of '{key}' cannot be used: {message}", hint, missing=True)
