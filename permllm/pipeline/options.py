"""What the fields of a component or of a pipeline's section are: type, default, range, help.

Error messages, the JSON Schema, ``permllm plugins`` and the docs are all made from
:func:`describe_options`.
"""

from __future__ import annotations

import builtins
import collections.abc
import inspect
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

import attrs

from permllm import components
from permllm.core.durations import Duration
from permllm.core.patterns import Pattern

SPELLABLE = (
    "int, float, bool, str, Path, Pattern, Duration, Literal, a kind of component, an attrs class, "
    "unions of these, tuple[T, ...] and dict[str, T]"
)
"""The types that an option may have."""

REFERENCE = "reference"
"""Metadata key of a field's default component, written as in a pipeline file."""

_NAMES: dict[str, Any] = {
    **vars(typing),
    **vars(collections.abc),
    **{kind.__name__: kind for kind in components.KINDS.values()},
    "Duration": Duration,
    "Path": pathlib.Path,
    "Pattern": Pattern,
    "pathlib": pathlib,
    "typing": typing,
}
# Names that a component may import for type checkers only, and use in its options.


T = TypeVar("T")


def once_per_class(describe: Callable[[type], T]) -> Callable[[type], T]:
    """Keeps what a function says of a class, whose fields do not change."""
    return cache(describe)


def reference(default: Any, *, help: str) -> Any:
    """A field whose default is written as in a pipeline file, and made by its reader."""
    return attrs.field(metadata={"help": help, REFERENCE: default})


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
def option_fields(cls: type) -> tuple[attrs.Attribute[Any], ...]:
    """The attrs fields that a pipeline file can set."""
    return tuple(field for field in attrs.fields(cls) if field.init)


@once_per_class
def option_types(cls: type) -> Mapping[str, Any]:
    """The resolved type of each option, by its key in the file.

    Raises:
        TypeError: an option has no type, or one that a file cannot spell.
    """
    resolved = {}
    for field in option_fields(cls):
        key = field.alias or field.name
        hint = _evaluate(cls, field)
        if not _spellable(hint):
            raise TypeError(
                f"option '{key}' has the type {hint!r}, which no file can spell; these can be: "
                f"{SPELLABLE}"
            )
        resolved[key] = hint
    return resolved


@once_per_class
def describe_options(cls: type) -> tuple[OptionInfo, ...]:
    """Every option of a component (or section) class, in the order of its fields."""
    hints = option_types(cls)
    return tuple(_describe(field, hints[field.alias or field.name]) for field in option_fields(cls))


def _describe(field: attrs.Attribute[Any], hint: Any) -> OptionInfo:
    meta = field.metadata
    required = field.default is attrs.NOTHING and REFERENCE not in meta
    return OptionInfo(
        name=field.alias or field.name,
        type=hint,
        required=required,
        default=None if required else plain(default_of(field)),
        help=meta.get("help", ""),
        minimum=meta.get("minimum"),
        maximum=meta.get("maximum"),
        choices=tuple(meta.get("choices", ())),
        deprecated=meta.get("deprecated", ""),
    )


def default_of(field: attrs.Attribute[Any]) -> Any:
    """A field's default: a reference as in a file, or a value."""
    if REFERENCE in field.metadata:
        return field.metadata[REFERENCE]
    factory = getattr(field.default, "factory", None)
    if factory is None:
        return field.default
    return None if getattr(field.default, "takes_self", False) else factory()


def component_kind(hint: Any) -> str | None:
    """The registry's name of a kind of component if ``hint`` is its base class."""
    return next((kind for kind, base in components.KINDS.items() if hint is base), None)


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def element(hint: Any) -> Any:
    """``T`` of ``tuple[T, ...]``, ``list[T]`` or ``Sequence[T]``; None for another type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return args[0]
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable):
        return args[0]
    return None


def mapping_element(hint: Any) -> Any:
    """``T`` of ``dict[str, T]`` or ``Mapping[str, T]``; None for another type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    return args[1] if origin in (dict, collections.abc.Mapping) and args[0] is str else None


def type_text(hint: Any) -> str:
    """A type in words that a reader of YAML knows."""
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        pathlib.Path: "a path",
        Pattern: 'a pattern such as "2:4"',
        Duration: "a time such as 30s or 5m",
        Any: "a value",
        types.NoneType: "null",
    }
    if hint in words:
        return words[hint]
    if len(members(hint)) > 1:
        return " or ".join(type_text(member) for member in members(hint))
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    if kind := component_kind(hint):
        return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if (item := element(hint)) is not None:
        return f"a list of {_plural(type_text(item))}"
    return "a mapping"


def plain(value: Any) -> Any:
    """A default as plain data (for values that hold no components with options)."""
    if isinstance(value, components.Component):
        return value.name
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _plural(text: str) -> str:
    noun = text.removeprefix("a ").removeprefix("an ")
    return f"{noun}s" if noun.replace(" ", "").isalpha() else f"{noun}, …"


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
    simple = (int, float, bool, str, pathlib.Path, Pattern, Duration, Any, types.NoneType)
    if any(hint is known for known in simple) or component_kind(hint):
        return True
    if typing.get_origin(hint) is Literal:
        return True
    if len(members(hint)) > 1:
        return all(_spellable(member) for member in members(hint))
    inner = element(hint) if element(hint) is not None else mapping_element(hint)
    if inner is not None:
        return _spellable(inner)
    if inspect.isclass(hint) and attrs.has(hint):
        option_types(hint)
        return True
    return False
