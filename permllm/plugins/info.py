"""One plugin, and one component of it, as the registry knows them."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from permllm.components import Component

BUILT_IN = "permllm"
"""The distribution whose plugins are the built-in components."""


@attrs.define(eq=False)
class PluginInfo:
    """One plugin: where it comes from, whether it works, what it adds.

    Attributes:
        name: its entry point's name, or its file's stem.
        distribution: the package that announces it; empty for a file, and if it was added
            by hand.
        version: that package's version, or empty.
        status: ``"loaded"``, ``"broken"``, ``"incompatible"`` (its package needs another
            permllm) or ``"disabled"``.
        error: what is broken or incompatible, else None.
        components: names of the components that it adds, by kind.
        file: the file that a pipeline file names under ``plugins:``, or None.
        sha256: the digest of that file as it was loaded, in hexadecimal.
        deprecations: what it implements and a later permllm will not have.
    """

    name: str
    distribution: str = ""
    version: str = ""
    status: str = "loaded"
    error: str | None = None
    components: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    file: Path | None = None
    sha256: str = ""
    deprecations: tuple[str, ...] = ()

    @property
    def package(self) -> str:
        """The part before the colon of ``package:name``."""
        return self.distribution or self.name

    @property
    def built_in(self) -> bool:
        """Whether it comes with permllm."""
        return normal(self.distribution) == BUILT_IN

    def __str__(self) -> str:
        return str(self.file) if self.file else f"{self.package} {self.version}".strip()

    def is_called(self, name: str) -> bool:
        """Whether ``name`` means this plugin: its entry point or its package."""
        return normal(name) in {normal(self.name), normal(self.package)}

    def broke(self, error: str) -> None:
        """Remember one more thing that is wrong with it."""
        self.status = "broken"
        self.error = f"{self.error}; {error}" if self.error else error


@attrs.frozen
class Entry:
    """A component class, its kind, and the plugin that it comes from."""

    kind: str
    cls: type[Component]
    plugin: PluginInfo


def normal(name: str) -> str:
    """A name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
