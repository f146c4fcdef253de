"""What the fields of a component or of another class are: type, default, range, help.

Error messages, the JSON Schema, ``permllm plugins`` and the docs are all made from
:func:`describe_options`.
"""

from __future__ import annotations

import builtins
import collections.abc
import inspect
import pathlib
import sys
import typing
from collections.abc import Mapping
from typing import Any

import attrs

from permllm.components import KINDS
from permllm.core.durations import Duration
from permllm.core.patterns import Pattern
from permllm.errors import did_you_mean
from permllm.fields.declared import REFERENCE, default_of, key_of, once_per_class, option_fields
from permllm.fields.errors import FieldError, shown
from permllm.fields.types import kind_of, type_text
from permllm.fields.writing import writer

SPELLABLE = (
    "int, float, bool, str, Path, Pattern, Duration, Literal, a kind of component, an attrs class, "
    "unions of these, tuple[T, ...] and dict[str, T]"
)
"""The types that an option may have."""

_NAMES: dict[str, Any] = {
    **vars(typing),
    **vars(collections.abc),
    **{kind.__name__: kind for kind in KINDS.values()},
    "Duration": Duration,
    "Path": pathlib.Path,
    "Pattern": Pattern,
    "pathlib": pathlib,
    "typing": typing,
}
# Names that a component may import for type checkers only, and use in its options.


_DEFAULTS = writer(bare=True)
# Defaults hold no components with options.


@attrs.frozen
class OptionInfo:
    """One option of a component, or one key of a pipeline's section.

    Attributes:
        name: its key in the pipeline file.
        type: its resolved type.
        required: whether the file has to give it.
        default: plain data as a file would spell it; None where it is required.
        help: one line.
        minimum, maximum: the range, both ends included; None without one.
        choices: the only allowed strings; empty without a limit.
        deprecated: what to use instead, where a later version will not have it; else empty.
    """

    name: str
    type: Any
    required: bool
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    deprecated: str = ""

    @property
    def range(self) -> str:
        """The range in words, empty where there is none: ``"at least 1"``."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        return range_text(self.minimum, self.maximum)

    @property
    def type_text(self) -> str:
        """The type in words: ``"a whole number or 'all'"``."""
        return type_text(self.type)


def range_text(minimum: float | None, maximum: float | None) -> str:
    """A range in words: ``"at least 1"``, ``"between 0 and 1"``; empty without limits."""
    if minimum is not None and maximum is not None:
        if minimum == maximum:
            return str(minimum)
        return f"between {minimum} and {maximum}"
    if minimum is not None:
        return f"at least {minimum}"
    return f"at most {maximum}" if maximum is not None else ""


@once_per_class
def option_types(cls: type) -> Mapping[str, Any]:
    """The resolved type of each option, by its key in the file.

    Raises:
        TypeError: an option has no type, or one that a file cannot spell.
    """
    resolved = {key_of(field): _evaluate(cls, field) for field in option_fields(cls)}
    for key, hint in resolved.items():
        if not _spellable(hint):
            raise TypeError(
                f"option '{key}' has the type {hint!r}, which no file can spell; these can be: "
                f"{SPELLABLE}"
            )
    return resolved


@once_per_class
def describe_options(cls: type) -> tuple[OptionInfo, ...]:
    """Every option of a component (or section) class, in the order of its fields."""
    hints = option_types(cls)
    return tuple(_describe(field, hints[key_of(field)]) for field in option_fields(cls))


def _describe(field: attrs.Attribute[Any], hint: Any) -> OptionInfo:
    meta = field.metadata
    required = field.default is attrs.NOTHING and REFERENCE not in meta
    return OptionInfo(
        name=key_of(field),
        type=hint,
        required=required,
        default=None if required else _DEFAULTS.unstructure(default_of(field)),
        help=meta.get("help", ""),
        minimum=meta.get("minimum"),
        maximum=meta.get("maximum"),
        choices=tuple(meta.get("choices", ())),
        deprecated=meta.get("deprecated", ""),
    )


def check_range(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    """Refuse a value outside the ``minimum``, ``maximum`` or ``choices`` of its option."""
    minimum, maximum = limits.get("minimum"), limits.get("maximum")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        too_small = minimum is not None and value < minimum
        if too_small or (maximum is not None and value > maximum):
            raise FieldError(f"{key} must be {range_text(minimum, maximum)}, not {value}")
    choices = limits.get("choices")
    if choices and value is not None and value not in choices:
        hint = did_you_mean(str(value), choices)
        raise FieldError(f"{key} must be one of {', '.join(choices)}, not {shown(value)}", hint)


def _evaluate(cls: type, field: attrs.Attribute[Any]) -> Any:
    hint = field.type
    if hint is None:
        raise TypeError(f"option '{field.name}' has no type")
    if not isinstance(hint, str):
        return hint
    # Names that are imported for type checkers only would break typing.get_type_hints.
    owner = next(base for base in cls.__mro__ if field.name in inspect.get_annotations(base))
    module = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
    try:
        return eval(hint, {**vars(builtins), **_NAMES, **module})
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise TypeError(f"the type of option '{field.name}' cannot be found: {error}") from error


def _spellable(hint: Any) -> bool:
    """Whether a file can give values of a type; raises for an attrs class that none can."""
    row = kind_of(hint)
    if row is None:
        return False
    if row.schema is None:
        option_types(hint)
    return all(map(_spellable, row.parts(hint)))
