"""Plain data to attrs classes, strictly, with every error at its place in the file.

cattrs dispatches on types and carries the path of an error in a tree of exceptions;
the hooks here make it strict (true is no number, "3" is no number) and word the errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_origin

import attrs
from cattrs import Converter
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ClassValidationError,
    IterableValidationError,
    IterableValidationNote,
)

from permllm.components import Observer
from permllm.core.durations import Duration
from permllm.core.patterns import Pattern
from permllm.errors import UserError, did_you_mean
from permllm.pipeline import scalars
from permllm.pipeline.document import Document, Keys
from permllm.pipeline.field_errors import (
    FieldError,
    expected,
    first_error,
    leaves,
    noted,
    of_default,
    shown,
)
from permllm.pipeline.lookup import Lookup
from permllm.pipeline.options import (
    REFERENCE,
    component_kind,
    default_of,
    element,
    mapping_element,
    members,
    option_fields,
    option_types,
    type_text,
)
from permllm.pipeline.schema import SOURCES

T = TypeVar("T")


_ERRORS = (FieldError, BaseValidationError)


class Structurer:
    """Makes attrs classes of plain data; the hooks, with the registry and folder that they need.

    Lists and mappings that are the very same object are made once: the runs of a matrix
    share most of theirs.

    Args:
        registry: where components are looked up.
        base_dir: the folder that relative paths start from.
    """

    def __init__(self, registry: Lookup, base_dir: Path) -> None:
        self.registry = registry
        self.base_dir = base_dir
        self.made_of: dict[tuple[int, Any], tuple[Any, Any]] = {}
        self.converter = Converter(detailed_validation=True)
        for cls, hook in (
            *scalars.STRICT.items(),
            (Path, self.path),
            (Pattern, scalars.pattern),
            (Duration, scalars.duration),
        ):
            self.converter.register_structure_hook(cls, hook)
        # Later registrations are tried first.
        self.when(attrs.has, self.section)
        self.when(lambda hint: mapping_element(hint) is not None, self.mapping)
        self.when(lambda hint: element(hint) is not None, self.sequence)
        self.when(lambda hint: get_origin(hint) is Literal, scalars.literal)
        self.when(lambda hint: len(members(hint)) > 1, self.union)
        self.when(lambda hint: component_kind(hint) is not None, self.component)
        self.when(lambda hint: element(hint) is Observer, self.observers)

    def structure(self, document: Document, cls: type[T]) -> T:
        """Make a ``cls`` of a document.

        Raises:
            UserError: the first thing in the file that is wrong, at its place.
        """
        try:
            return self.converter.structure(document.data, cls)
        except _ERRORS as error:
            raise first_error(document, error) from None

    def missing_keys(self, document: Document, cls: type) -> tuple[Keys, ...]:
        """Where a document lacks what a ``cls`` cannot do without."""
        try:
            self.converter.structure(document.data, cls)
        except _ERRORS as error:
            return tuple(
                place
                for place, leaf in leaves(error, ())
                if isinstance(leaf, FieldError) and leaf.missing
            )
        return ()

    def when(self, test: Callable[[Any], bool], hook: Callable[[Any, Any], Any]) -> None:
        self.converter.register_structure_hook_func(test, partial(self.once, hook))

    def once(self, hook: Callable[[Any, Any], Any], value: Any, hint: Any) -> Any:
        if not isinstance(value, (dict, list)):
            return hook(value, hint)
        key = (id(value), hint)
        if key not in self.made_of:
            # With the value, so that no other can get its id.
            self.made_of[key] = (value, hook(value, hint))
        return self.made_of[key][1]

    def path(self, value: Any, hint: Any) -> Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise expected(Path, value)
        try:
            return (self.base_dir / Path(value).expanduser()).absolute()
        except RuntimeError as error:
            raise FieldError(f"{value!r} is no path: {error}") from error

    def union(self, value: Any, hint: Any) -> Any:
        options = members(hint)
        if value is None and NoneType in options:
            return None
        options = tuple(option for option in options if option is not NoneType)
        if len(options) == 1:
            return self.converter.structure(value, options[0])
        if set(options) == set(SOURCES.values()):
            return self.source(value)
        for option in options:
            try:
                return self.converter.structure(value, option)
            except _ERRORS:
                continue
        raise expected(hint, value)

    def sequence(self, value: Any, hint: Any) -> Any:
        if not isinstance(value, list):
            raise expected(hint, value, "write it as [a, b]" if scalars.is_scalar(value) else None)
        return self.items(enumerate(value), element(hint), hint, tuple)

    def mapping(self, value: Any, hint: Any) -> Any:
        if not isinstance(value, dict):
            raise expected(hint, value)
        inner = mapping_element(hint)
        if inner is Any:
            return value
        return self.items(
            value.items(), inner, hint, lambda items: dict(zip(value, items, strict=True))
        )

    def items(self, pairs: Any, inner: Any, hint: Any, make: Callable[[list[Any]], Any]) -> Any:
        items, errors = [], []
        for key, item in pairs:
            try:
                items.append(self.converter.structure(item, inner))
            except _ERRORS as error:
                errors.append(noted(error, IterableValidationNote("item", key, inner)))
        if errors:
            raise IterableValidationError("items", errors, hint)
        return make(items)

    def observers(self, value: Any, hint: Any) -> tuple[Observer, ...]:
        """``track:`` as a list of components, or as a mapping of names to options."""
        if isinstance(value, dict):
            return self.named(value)
        found: tuple[Observer, ...] = self.sequence(value, hint)
        names = [observer.name for observer in found]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise FieldError(f"the observer '{twice[0]}' is there twice")
        return found

    def named(self, value: dict[str, Any]) -> tuple[Observer, ...]:
        made, errors = [], []
        for name, options in value.items():
            try:
                self.known("observer", name, at_key=True)
                made.append(self.made("observer", name, {} if options is None else options))
            except _ERRORS as error:
                errors.append(noted(error, AttributeValidationNote("observer", name, Observer)))
        if errors:
            raise ClassValidationError("track", errors, Observer)
        return tuple(made)

    def source(self, value: Any) -> Any:
        listing = ", ".join(SOURCES)
        if not isinstance(value, dict):
            raise FieldError(
                f"expected a mapping with 'source' (one of {listing}), not {shown(value)}",
                "for example {source: directory, path: my-model}",
            )
        tag = value.get("source")
        if tag is None:
            raise FieldError(f"'source' is missing; it is one of {listing}")
        if tag not in SOURCES:
            wrong = FieldError(f"unknown source {tag!r}", did_you_mean(str(tag), SOURCES))
            note = AttributeValidationNote("source", "source", str)
            raise ClassValidationError("source", [noted(wrong, note)], type(value))
        options = {key: item for key, item in value.items() if key != "source"}
        return self.fields(SOURCES[tag], options, f"key {{}} of a model from '{tag}'", ("source",))

    def component(self, value: Any, hint: Any) -> Any:
        kind = component_kind(hint)
        assert kind is not None
        if isinstance(value, str):
            return self.made(kind, value, {})
        if not isinstance(value, dict):
            raise expected(hint, value, f"write a {kind}'s name, or {{name: …, option: …}}")
        if not isinstance(value.get("name"), str):
            raise FieldError(f"this {kind} needs a 'name'", did_you_mean("", self.names(kind)))
        options = {key: item for key, item in value.items() if key != "name"}
        return self.made(kind, value["name"], options)

    def names(self, kind: str) -> list[str]:
        return list(self.registry.components(kind))

    def made(self, kind: str, name: str, options: Any) -> Any:
        """The component of a name and options; an error of the name is noted as one."""
        try:
            cls = self.known(kind, name)
        except FieldError as error:
            note = AttributeValidationNote("name", "name", str)
            raise ClassValidationError("name", [noted(error, note)], type(kind)) from None
        if not isinstance(options, dict):
            raise FieldError(f"expected the options of {kind} '{name}', not {shown(options)}")
        presets: Mapping[str, Mapping[str, Any]] = getattr(cls, "presets", {})
        extra = ("name", "preset") if presets else ("name",)
        if presets and "preset" in options:
            options = dict(options)
            options = self.preset(presets, options.pop("preset")) | options
        return self.fields(cls, options, f"option {{}} of {kind} '{name}'", extra)

    def known(self, kind: str, name: str, *, at_key: bool = False) -> Any:
        try:
            return self.registry.component(kind, name)
        except UserError as error:
            raise FieldError(error.message, error.hint, at_key=at_key) from None

    def preset(self, presets: Mapping[str, Mapping[str, Any]], name: Any) -> dict[str, Any]:
        if name in list(presets):
            return dict(presets[name])
        wrong = FieldError(f"unknown preset {name!r}", did_you_mean(str(name), presets))
        note = AttributeValidationNote("preset", "preset", str)
        raise ClassValidationError("preset", [noted(wrong, note)], str)

    def section(self, value: Any, cls: type) -> Any:
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise FieldError(f"expected a mapping, not {shown(value)}")
        return self.fields(cls, value, "key {}", ())

    def fields(self, cls: Any, data: dict[str, Any], what: str, extra: tuple[str, ...]) -> Any:
        """An attrs class of its fields' data.

        Args:
            cls: the class.
            data: plain data by key.
            what: names a key in messages, such as ``"option {} of metric 'ria'"``.
            extra: keys that are known beside the fields.
        """
        hints = option_types(cls)
        values: dict[str, Any] = {}
        errors: list[Exception] = []
        for key in data:
            if key not in hints:
                wrong = FieldError(
                    f"unknown {what.format(repr(key))}",
                    did_you_mean(key, [*hints, *extra]),
                    at_key=True,
                )
                errors.append(noted(wrong, AttributeValidationNote("key", key, cls)))
        for field in option_fields(cls):
            key = field.alias or field.name
            try:
                values |= self.field(field, key, hints[key], data)
            except _ERRORS as error:
                errors.append(noted(error, AttributeValidationNote("key", key, hints[key])))
        if errors:
            raise ClassValidationError("fields", errors, cls)
        try:
            return cls(**values)
        except UserError as error:
            raise FieldError(error.message, error.hint) from error
        except Exception as error:
            # A component's own validators may be anybody's code.
            raise self.refused(cls, error) from error

    def field(
        self, field: attrs.Attribute[Any], key: str, hint: Any, data: dict[str, Any]
    ) -> dict[str, Any]:
        """``{key: value}``, or nothing where the class' own default is to stand."""
        if key in data:
            value = self.converter.structure(data[key], hint)
            scalars.check_range(key, data[key], field.metadata)
            return {key: value}
        default = default_of(field)
        if REFERENCE in field.metadata or _is_reference(default, hint):
            try:
                return {key: self.converter.structure(default, hint)}
            except _ERRORS as error:
                raise of_default(key, error) from None
        if field.default is attrs.NOTHING:
            meaning = field.metadata.get("help", type_text(hint))
            raise FieldError(f"'{key}' is missing: {meaning}", missing=True)
        return {}

    def refused(self, cls: type, error: Exception) -> Exception:
        """What a class' own validators say, at the key that they name first."""
        message = str(error.args[0] if error.args else error)
        if not isinstance(error, (TypeError, ValueError)):
            owner = self.registry.plugin_of(cls)
            message = f"{owner or cls.__module__} broke: {type(error).__name__}: {message}"
        wrong = FieldError(message)
        word = message.split(" ", 1)[0].strip("'\"`:")
        if word in option_types(cls):
            note = AttributeValidationNote("key", word, cls)
            return ClassValidationError("validator", [noted(wrong, note)], cls)
        return wrong


def _is_reference(default: Any, hint: Any) -> bool:
    """Whether a class gives a component by name as its default."""
    kinds = any(component_kind(member) for member in members(hint))
    return kinds and isinstance(default, (str, dict))
