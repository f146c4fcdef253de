"""Documents to the classes of a pipeline, with every error at its place in the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from permllm.components import KINDS, Exporter, Observer
from permllm.errors import UserError, did_you_mean
from permllm.fields.errors import ERRORS, FieldError, Keys, at, each, leaves, shown
from permllm.fields.reading import Reader
from permllm.fields.types import expected, sequence
from permllm.pipeline.document import Document
from permllm.pipeline.lookup import Lookup

T = TypeVar("T")


class Structurer(Reader):
    """Makes what a pipeline file describes, its components included.

    Args:
        registry: where components are looked up.
        base_dir: the folder that relative paths start from.
    """

    def __init__(self, registry: Lookup, base_dir: Path) -> None:
        super().__init__(base_dir)
        self.registry = registry
        self.when(lambda hint: hint == tuple[Observer, ...], self._observers)
        self.when(lambda hint: hint == tuple[Exporter, ...], self._exporters)

    def structure(self, document: Document, cls: type[T]) -> T:
        """Make a ``cls`` of a document.

        Raises:
            UserError: the first thing in the file that is wrong, at its place.
        """
        try:
            made: T = self.read(document.data, cls)
        except ERRORS as error:
            raise first_error(document, error) from None
        return made

    def missing_keys(self, document: Document, cls: type) -> tuple[Keys, ...]:
        """Where a document lacks what a ``cls`` cannot do without."""
        try:
            self.read(document.data, cls)
        except ERRORS as error:
            return tuple(place for place, leaf in leaves(error) if getattr(leaf, "missing", False))
        return ()

    def component(self, value: Any, kind: str) -> Any:
        """A component of its name, or of a mapping with its name and options."""
        if isinstance(value, str):
            return self._of_name(kind, value, {})
        if not isinstance(value, dict):
            advice = f"write a {kind}'s name, or {{name: …, option: …}}"
            raise expected(KINDS[kind], value, advice)
        if not isinstance(value.get("name"), str):
            names = did_you_mean("", self.registry.components(kind))
            raise FieldError(f"this {kind} needs a 'name'", names)
        options = {key: item for key, item in value.items() if key != "name"}
        return self._of_name(kind, value["name"], options)

    def owner(self, cls: type) -> str:
        """The plugin that a class came with, for messages."""
        return str(self.registry.plugin_of(cls) or cls.__module__)

    def _observers(self, value: Any, hint: Any) -> tuple[Observer, ...]:
        """``track:`` as a list of components, or as a mapping of names to options."""
        if isinstance(value, dict):
            return tuple(each(value.items(), self._observer))
        observers: tuple[Observer, ...] = sequence(value, hint, self)
        if twice := _twice(observers):
            raise FieldError(f"the observer '{twice}' is there twice")
        return observers

    def _exporters(self, value: Any, hint: Any) -> tuple[Exporter, ...]:
        """The exporters, whose names are those of their folders."""
        exporters: tuple[Exporter, ...] = sequence(value, hint, self)
        if twice := _twice(exporters):
            raise FieldError(
                f"the exporter '{twice}' is there twice, and both would write one folder",
                "write one here, and the other later by `permllm export RUN --format … --to …`",
            )
        return exporters

    def _observer(self, name: str, options: Any) -> Observer:
        self._known("observer", name, at_key=True)
        made: Observer = self._of_name("observer", name, {} if options is None else options)
        return made

    def _of_name(self, kind: str, name: str, options: Any) -> Any:
        """The component of a name and options; an error of the name is noted as one."""
        try:
            cls = self._known(kind, name)
        except FieldError as error:
            raise at("name", error) from None
        if not isinstance(options, dict):
            raise FieldError(f"expected the options of {kind} '{name}', not {shown(options)}")
        presets: Mapping[str, Mapping[str, Any]] = getattr(cls, "presets", {})
        extra = ("name", "preset") if presets else ("name",)
        if presets and "preset" in options:
            options = dict(options)
            options = _preset(presets, options.pop("preset")) | options
        return self.fields(cls, options, f"option {{}} of {kind} '{name}'", extra)

    def _known(self, kind: str, name: str, *, at_key: bool = False) -> Any:
        try:
            return self.registry.component(kind, name)
        except UserError as error:
            raise FieldError(error.message, error.hint, at_key=at_key) from None


def _twice(components: Iterable[Observer | Exporter]) -> str | None:
    """The first name, by the alphabet, that several have."""
    counted = Counter(component.name for component in components)
    return min((name for name, count in counted.items() if count > 1), default=None)


def first_error(document: Document, error: Exception) -> UserError:
    """The error that a reader of the file meets first, at its place.

    Args:
        document: where everything stands.
        error: a tree of exceptions with cattrs' notes, or one exception.
    """
    placed = [_placed(document, place, leaf) for place, leaf in leaves(error)]
    return min(placed, key=lambda pair: pair[0])[1]


def _placed(document: Document, place: Keys, error: Exception) -> tuple[Any, UserError]:
    origin = document.origin(place, key=getattr(error, "at_key", False))
    message, hint = getattr(error, "message", str(error)), getattr(error, "hint", None)
    return (getattr(error, "missing", False), origin.order), origin.error(message, hint)


def _preset(presets: Mapping[str, Mapping[str, Any]], name: Any) -> dict[str, Any]:
    if name in list(presets):
        return dict(presets[name])
    raise at("preset", FieldError(f"unknown preset {name!r}", did_you_mean(str(name), presets)))
