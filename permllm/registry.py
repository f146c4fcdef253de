"""Finds plugins, checks what they add, and looks components up by name.

Plugins are loaded one by one, so that one that breaks is known by its package and
version and never takes the others with it: it is a warning until a pipeline names
something that cannot be found. Built-in components come in by the same door.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import attrs
import pluggy

from permllm import hookspecs
from permllm.component_checks import problem
from permllm.components import KINDS, Component
from permllm.errors import UserError, did_you_mean, nearest

DISABLE_VARIABLE = "PERMLLM_DISABLE_PLUGINS"
"""Environment variable with the names of plugins not to load, separated by commas."""

HOOKS = {kind: f"permllm_{kind}s" for kind in KINDS}
"""The hook through which each kind of component comes in."""


@attrs.define(eq=False)
class PluginInfo:
    """One plugin: where it comes from, whether it works, what it adds.

    Attributes:
        name: its entry point's name.
        distribution: the package that announces it; empty if it was added by hand.
        version: that package's version, or empty.
        status: ``"loaded"``, ``"broken"`` or ``"disabled"``.
        error: what is broken, else None.
        components: names of the components that it adds, by kind.
    """

    name: str
    distribution: str = ""
    version: str = ""
    status: str = "loaded"
    error: str | None = None
    components: dict[str, tuple[str, ...]] = attrs.field(factory=dict)

    @property
    def package(self) -> str:
        """The part before the colon of ``package:name``."""
        return self.distribution or self.name

    def __str__(self) -> str:
        return f"{self.package} {self.version}".strip()

    def is_called(self, name: str) -> bool:
        """Whether ``name`` means this plugin: its entry point or its package."""
        return _normal(name) in {_normal(self.name), _normal(self.package)}

    def broke(self, error: str) -> None:
        """Remember one more thing that is wrong with it."""
        self.status = "broken"
        self.error = f"{self.error}; {error}" if self.error else error


@attrs.frozen
class Entry:
    """A component class and the plugin that it comes from."""

    cls: type[Component]
    plugin: PluginInfo


class Registry:
    """The plugins of one process, and their components.

    Attributes:
        manager: pluggy's manager, to register observers with and to call hooks through.
    """

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self._plugins: list[PluginInfo] = []
        self._ungathered: list[tuple[PluginInfo, object]] = []
        self._entries: dict[str, dict[str, list[Entry]]] = {kind: {} for kind in KINDS}

    @classmethod
    def load(cls, disabled: Iterable[str] = ()) -> Registry:
        """All installed plugins but the ``disabled`` ones.

        Args:
            disabled: names of plugins or packages, beside those in the environment
                variable ``PERMLLM_DISABLE_PLUGINS`` (separated by commas).
        """
        names = [*disabled, *os.environ.get(DISABLE_VARIABLE, "").split(",")]
        off = {_normal(name) for name in names if name.strip()}
        registry = cls()
        for entry_point in _entry_points():
            registry._load(entry_point, off)
        return registry

    def add(
        self, plugin: object, name: str, *, distribution: str = "", version: str = ""
    ) -> PluginInfo:
        """Add a plugin of this process, such as a module or an object with hooks.

        Args:
            plugin: what carries the hook implementations.
            name: what to call it.
            distribution, version: the package it belongs to, if it does.
        """
        info = PluginInfo(name, distribution, version)
        self._plugins.append(info)
        self._register(info, plugin)
        return info

    @property
    def plugins(self) -> list[PluginInfo]:
        """Every plugin that was found, loaded or not."""
        self._gather()
        return list(self._plugins)

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the plugins, in sentences for the user."""
        return [
            *(f"the plugin '{i.name}' ({i}) is broken: {i.error}" for i in self._broken()),
            *(
                f"{_owners(found)} both have the {kind} '{name}'; name it as 'package:{name}'"
                for kind, names in self._entries.items()
                for name, found in names.items()
                if len(found) > 1
            ),
        ]

    def components(self, kind: str) -> dict[str, Entry]:
        """Components of a kind by the name a pipeline file uses: ``package:name`` on a clash."""
        self._gather()
        return {
            self.reference(entry): entry
            for _, found in sorted(self._entries[kind].items())
            for entry in found
        }

    def component(self, kind: str, name: str) -> type[Component]:
        """The component class of a name or of ``package:name``.

        Raises:
            UserError: there is none, or two packages have one.
        """
        return self.entry(kind, name).cls

    def entry(self, kind: str, name: str) -> Entry:
        """The same with its plugin."""
        self._gather()
        package, _, bare = name.rpartition(":")
        found = self._entries[kind].get(bare, [])
        if package:
            found = [entry for entry in found if entry.plugin.is_called(package)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{_owners(found)} both have the {kind} '{bare}'",
                hint=f"say which one: {' or '.join(self.reference(e) for e in found)}",
            )
        raise self._unknown(kind, name, package)

    def reference(self, entry: Entry) -> str:
        """The name that finds this component: bare, or ``package:name`` on a clash."""
        name = entry.cls.name
        kind = next(kind for kind, base in KINDS.items() if issubclass(entry.cls, base))
        clash = len(self._entries[kind].get(name, [])) > 1
        return f"{entry.plugin.package}:{name}" if clash else name

    def reference_of(self, cls: type[Component]) -> str:
        """:meth:`reference` of a class; its bare name if it is not registered."""
        entry = self._entry_of(cls)
        return self.reference(entry) if entry else cls.name

    def plugin_of(self, cls: type) -> PluginInfo | None:
        """The plugin that a component class comes from; None if it is not registered."""
        entry = self._entry_of(cls)
        return entry.plugin if entry else None

    def _entry_of(self, cls: type) -> Entry | None:
        self._gather()
        every = (found for names in self._entries.values() for found in names.values())
        return next((entry for found in every for entry in found if entry.cls is cls), None)

    def _unknown(self, kind: str, name: str, package: str) -> UserError:
        hint = did_you_mean(name.rpartition(":")[2], self.components(kind))
        if package and not any(plugin.is_called(package) for plugin in self._plugins):
            hint = f"no package '{package}' with a plugin is installed: pip install {package}"
        lost = [f"{i} ({i.error})" for i in self._broken()]
        off = [str(info.name) for info in self._plugins if info.status == "disabled"]
        if lost:
            hint += f"; plugins that are broken: {', '.join(lost)}"
        if off:
            hint += f"; plugins that are switched off: {', '.join(off)}"
        return UserError(f"unknown {kind} '{name}'", hint=hint)

    def _broken(self) -> list[PluginInfo]:
        return [info for info in self.plugins if info.status == "broken"]

    def _load(self, entry_point: EntryPoint, off: set[str]) -> None:
        dist = entry_point.dist
        info = PluginInfo(entry_point.name, dist.name if dist else "", dist.version if dist else "")
        self._plugins.append(info)
        if off & {_normal(info.name), _normal(info.package)}:
            info.status = "disabled"
            return
        try:
            plugin = entry_point.load()
        except (Exception, SystemExit) as error:
            # A stranger's module: whatever it raises is its own fault, not the run's.
            info.broke(f"it cannot be imported: {_shown(error)}")
        else:
            self._register(info, plugin)

    def _register(self, info: PluginInfo, plugin: object) -> None:
        if self.manager.is_registered(plugin):
            info.broke(f"it is the same object as the plugin '{self.manager.get_name(plugin)}'")
            return
        taken = self.manager.has_plugin(info.name)
        try:
            self.manager.register(plugin, f"{info.package}:{info.name}" if taken else info.name)
        except (ValueError, TypeError, pluggy.PluginValidationError) as error:
            info.broke(" ".join(str(error).split()))
            self._forget(plugin)
            return
        if unknown := self._unknown_hook(plugin):
            info.broke(unknown)
            self._forget(plugin)
            return
        self._ungathered.append((info, plugin))

    def _forget(self, plugin: object) -> None:
        if self.manager.is_registered(plugin):
            self.manager.unregister(plugin)

    def _unknown_hook(self, plugin: object) -> str | None:
        known = [name for name in vars(hookspecs) if name.startswith("permllm_")]
        for caller in self.manager.get_hookcallers(plugin) or ():
            if caller.name not in known:
                near = nearest(caller.name, known)
                hint = f"; did you mean '{near}'?" if near else ""
                return f"there is no hook '{caller.name}'{hint}"
        return None

    def _gather(self) -> None:
        """Ask plugins for components. Late, since that imports torch and what else they need."""
        while self._ungathered:
            info, plugin = self._ungathered.pop(0)
            for kind in KINDS:
                self._gather_kind(info, plugin, kind)

    def _gather_kind(self, info: PluginInfo, plugin: object, kind: str) -> None:
        hook = getattr(self.manager.hook, HOOKS[kind])
        for implementation in hook.get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            try:
                offered = list(implementation.function())
            except (Exception, SystemExit) as error:
                # As on import: somebody else's code.
                info.broke(f"its hook {HOOKS[kind]} failed: {_shown(error)}")
                continue
            for cls in offered:
                self._accept(info, kind, cls)

    def _accept(self, info: PluginInfo, kind: str, cls: Any) -> None:
        try:
            wrong = problem(kind, KINDS[kind], cls)
        except Exception as error:
            # Looking at a class runs its metaclass and properties: somebody else's code.
            wrong = f"{cls!r} cannot be looked at: {_shown(error)}"
        if wrong:
            info.broke(f"{kind}: {wrong}")
            return
        found = self._entries[kind].setdefault(cls.name, [])
        if any(entry.plugin is info for entry in found):
            info.broke(f"it has two {kind}s called '{cls.name}'")
            return
        found.append(Entry(cls, info))
        info.components[kind] = (*info.components.get(kind, ()), cls.name)


def _entry_points() -> list[EntryPoint]:
    """The plugins' entry points: permllm's own first, the others by package."""
    found: dict[tuple[str, str], EntryPoint] = {}
    for entry_point in entry_points(group=hookspecs.PROJECT):
        package = entry_point.dist.name if entry_point.dist else ""
        # A package that two folders of the path hold counts once, as on import.
        found.setdefault((_normal(package), entry_point.name), entry_point)
    keys = sorted(found, key=lambda key: (key[0] != hookspecs.PROJECT, key))
    return [found[key] for key in keys]


def _normal(name: str) -> str:
    """A name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _owners(entries: Iterable[Entry]) -> str:
    return " and ".join(str(entry.plugin) for entry in entries)


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
