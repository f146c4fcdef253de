"""Where a pipeline's components are looked up: what its reader wants of a registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from permllm.components import Component


class Entry(Protocol):
    """A component that can be had."""

    @property
    def cls(self) -> type[Component]:
        """Its class."""
        ...


class Lookup(Protocol):
    """Finds components by name: :class:`permllm.registry.Registry` does."""

    def component(self, kind: str, name: str) -> type[Component]:
        """The class of a kind and name, or a ``UserError``."""
        ...

    def components(self, kind: str) -> Mapping[str, Entry]:
        """All of a kind, by the names that a file uses."""
        ...

    def reference_of(self, cls: type[Component]) -> str:
        """The name that a file uses for a class."""
        ...

    def plugin_of(self, cls: type) -> object | None:
        """What a class came with, for messages."""
        ...

    def add_file(self, path: Path, expected: str | None = None) -> Any:
        """Add a plugin of one file, whose SHA-256 may be expected, or raise a ``UserError``."""
        ...
