"""Looks components up by kind and name, in the plugins of one process.

A plugin that cannot be used is a warning until a pipeline names something that is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pluggy

from permllm import hookspecs
from permllm.components import Component, Observer
from permllm.errors import UserError
from permllm.given import Giver
from permllm.plugins.diagnosis import ambiguous, plugin_warnings, unknown
from permllm.plugins.guard import guard_hooks
from permllm.plugins.info import Entry, PluginInfo
from permllm.plugins.loading import (
    entries_of,
    load_entry_point,
    plugin_entry_points,
    register,
    switched_off,
)
from permllm.plugins.single_file import changed, digest_of, load_file

__all__ = ["Entry", "PluginInfo", "Registry"]


class Registry:
    """The plugins of one process, and their components.

    Attributes:
        manager: pluggy's manager, to register observers with and to call hooks through.
    """

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self._off: list[str] = []
        self._plugins: list[PluginInfo] = []
        self._unasked: list[tuple[PluginInfo, object]] = []
        self._entries: list[Entry] = []

    @classmethod
    def load(cls, disabled: Iterable[str] = ()) -> Registry:
        """All installed plugins but the ``disabled`` ones.

        Args:
            disabled: names of plugins or packages, beside those in the environment
                variable ``PERMLLM_DISABLE_PLUGINS`` (separated by commas).
        """
        registry = cls()
        registry._off = switched_off(disabled)
        for entry_point in plugin_entry_points():
            registry._take(*load_entry_point(entry_point, registry._off))
        return registry

    def add(
        self, plugin: object, name: str, *, distribution: str = "", version: str = ""
    ) -> PluginInfo:
        """Add a plugin of this process: a module or an object with hooks, maybe of a package."""
        return self._take(PluginInfo(name, distribution, version), plugin)

    def add_file(self, path: Path, expected: str | None = None) -> PluginInfo:
        """Add a plugin of one file, of an absolute path, as ``plugins:`` names it; once each.

        Args:
            path: the file.
            expected: its SHA-256, where it is only run if it is still what it was.

        Raises:
            UserError: there is no such file, it is another than expected, cannot be imported,
                has no hooks, a broken component or one with a built-in's name, or changed
                since it was added.
        """
        for known in self._plugins:
            if known.file == path:
                _refuse_changed(known, path)
                if expected is not None and known.sha256 and known.sha256 != expected:
                    raise changed(path)
                return known
        info, module = PluginInfo(path.stem, file=path), None
        if any(map(info.is_called, self._off)):
            info.status = "disabled"
        else:
            module, info.sha256 = load_file(path, expected)
            register(self.manager, info, module)
        entries = entries_of(self.manager, info, module)
        for kind, name in ((entry.kind, entry.cls.name) for entry in entries):
            # Nobody may take a file's own component for the built-in one of its name.
            if any(other.plugin.built_in for other in self._called(kind, name)):
                info.broke(f"the {kind} '{name}' is built in; give it another name")
        if info.error:
            if self.manager.is_registered(module):
                self.manager.unregister(module)
            raise UserError(f"'{path}' is no plugin that works: {info.error}")
        self._plugins.append(info)
        self._entries += entries
        return info

    @contextmanager
    def observing(self, observer: Observer, watcher: object) -> Iterator[None]:
        """Tell what an observer watches with of everything that happens in the block.

        If one of its hooks raises, that is a warning, and it is told nothing more.
        """
        owner = self.plugin_of(type(observer))
        who = f"the observer '{observer.name}'" + (f" ({owner})" if owner else "")
        if watcher is None:
            raise Giver("observer", observer).wrong("watches with nothing: its watch() gave None")
        self.manager.register(watcher)
        guard_hooks(self.manager, watcher, who, owner.distribution if owner else "")
        try:
            yield
        finally:
            self.manager.unregister(watcher)

    @property
    def disabled(self) -> tuple[str, ...]:
        """Names of plugins and packages that are not loaded, wherever they were named."""
        return tuple(self._off)

    @property
    def plugins(self) -> list[PluginInfo]:
        """Every plugin that there is, loaded or not."""
        self._ask()
        return list(self._plugins)

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the plugins, in sentences for the user."""
        return list(plugin_warnings(self.plugins, self._entries))

    def versions(self) -> dict[str, str]:
        """The version of each package, beside permllm, whose plugins are loaded."""
        loaded = sorted(
            (info.distribution, info.version)
            for info in self._plugins
            if info.distribution and not info.built_in and info.status == "loaded"
        )
        return dict(loaded)

    def digests(self, files: Iterable[Path]) -> dict[str, str]:
        """The SHA-256 of plugins of one file, by path, as they were loaded."""
        wanted = set(files)
        return {str(info.file): info.sha256 for info in self._plugins if info.file in wanted}

    def components(self, kind: str) -> dict[str, Entry]:
        """Components of a kind by the name that a pipeline file uses (:meth:`reference`)."""
        self._ask()
        by_name = sorted(self._entries, key=lambda entry: entry.cls.name)
        return {self.reference(entry): entry for entry in by_name if entry.kind == kind}

    def component(self, kind: str, name: str) -> type[Component]:
        """The component class of a name or of ``package:name``.

        A bare name means the built-in component if there is one, whatever is installed.

        Raises:
            UserError: there is none, or two packages have one.
        """
        return self.entry(kind, name).cls

    def entry(self, kind: str, name: str) -> Entry:
        """The same with its plugin."""
        package, _, bare = name.rpartition(":")
        entries = self._called(kind, bare)
        if package:
            entries = [entry for entry in entries if entry.plugin.is_called(package)]
        else:
            entries = [entry for entry in entries if entry.plugin.built_in] or entries
        if not entries:
            raise unknown(kind, name, self.components(kind), self._plugins)
        if len(entries) > 1:
            raise ambiguous(kind, bare, entries)
        return entries[0]

    def reference(self, entry: Entry) -> str:
        """The name that finds this component: bare, or ``package:name`` on a clash.

        Built-in components keep their bare names.
        """
        name = entry.cls.name
        clash = len(self._called(entry.kind, name)) > 1
        return f"{entry.plugin.package}:{name}" if clash and not entry.plugin.built_in else name

    def reference_of(self, cls: type[Component]) -> str:
        """:meth:`reference` of a class; its bare name if it is not registered."""
        entry = self._entry_of(cls)
        return self.reference(entry) if entry else cls.name

    def plugin_of(self, cls: type) -> PluginInfo | None:
        """The plugin that a component class comes from; None if it is not registered."""
        entry = self._entry_of(cls)
        return entry.plugin if entry else None

    def _called(self, kind: str, name: str) -> list[Entry]:
        self._ask()
        return [entry for entry in self._entries if (entry.kind, entry.cls.name) == (kind, name)]

    def _entry_of(self, cls: type) -> Entry | None:
        self._ask()
        return next((entry for entry in self._entries if entry.cls is cls), None)

    def _take(self, info: PluginInfo, plugin: object) -> PluginInfo:
        self._plugins.append(info)
        if info.status == "loaded":
            register(self.manager, info, plugin)
        if info.status == "loaded":
            self._unasked.append((info, plugin))
        return info

    def _ask(self) -> None:
        """Ask plugins for components. Late, since that imports torch and what else they need."""
        while self._unasked:
            info, plugin = self._unasked.pop(0)
            self._entries += entries_of(self.manager, info, plugin)


def _refuse_changed(info: PluginInfo, path: Path) -> None:
    if info.sha256 and digest_of(path) != info.sha256:
        raise UserError(
            f"'{path}' changed since this registry loaded it",
            hint="read the pipeline file with a new Registry",
        )
