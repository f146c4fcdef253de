"""Finds plugins, checks what they add, and looks components up by name.

Plugins are loaded one by one, so that one that breaks is known by its package and
version and never takes the others with it: it is a warning until a pipeline names
something that cannot be found. Built-in components come in by the same door.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import attrs
import pluggy

from permllm import hookspecs
from permllm.components import KINDS, Component, Observer
from permllm.errors import DeprecatedWarning, UserError, did_you_mean
from permllm.plugins.component_checks import problem
from permllm.plugins.discovery import plugin_entry_points, switched_off
from permllm.plugins.guard import guard_hooks
from permllm.plugins.hook_checks import COMPONENT_HOOKS, wrong_hooks
from permllm.plugins.info import PluginInfo, normal
from permllm.plugins.requirements import incompatibility, missing_dependency
from permllm.plugins.single_file import digest_of, load_file
from permllm.version import __version__

__all__ = ["Entry", "PluginInfo", "Registry"]


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
        self._off: set[str] = set()

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
            registry._load(entry_point)
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

    def add_file(self, path: Path) -> PluginInfo:
        """Add a plugin of one file, as ``plugins:`` in a pipeline file names it; once each.

        Args:
            path: absolute.

        Raises:
            UserError: there is no such file, it cannot be imported, has no hooks, a broken
                component or one with a built-in's name, or changed since it was added.
        """
        known = next((info for info in self._plugins if info.file == path), None)
        if known is not None:
            if known.sha256 and digest_of(path) != known.sha256:
                raise UserError(
                    f"'{path}' changed since this registry loaded it",
                    hint="read the pipeline file with a new Registry",
                )
            return known
        info = PluginInfo(path.stem, file=path)
        if self._is_off(info):
            info.status = "disabled"
            self._plugins.append(info)
            return info
        module, info.sha256 = load_file(path)
        self._plugins.append(info)
        self._register(info, module)
        self._gather()
        self._refuse_built_in_names(info)
        if info.error:
            self._plugins.remove(info)
            self._forget(info, module)
            raise UserError(f"'{path}' is no plugin that works: {info.error}")
        return info

    @contextmanager
    def observing(self, observer: Observer, watcher: object) -> Iterator[None]:
        """Tell what an observer watches with of everything that happens in the block.

        If one of its hooks raises, that is a warning, and it is told nothing more.
        """
        owner = self.plugin_of(type(observer))
        self.manager.register(watcher)
        self._guard(watcher, f"the observer '{observer.name}'", owner)
        try:
            yield
        finally:
            self.manager.unregister(watcher)

    @property
    def plugins(self) -> list[PluginInfo]:
        """Every plugin that was found, loaded or not."""
        self._gather()
        return list(self._plugins)

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the plugins, in sentences for the user."""
        return [
            *(f"the plugin '{i.name}' ({i}) is {i.status}: {i.error}" for i in self._unusable()),
            *(
                f"the plugin '{info.name}' ({info}) uses what is deprecated: {what}"
                for info in self._plugins
                for what in info.deprecations
            ),
            *(
                self._clash(kind, name, found)
                for kind, names in self._entries.items()
                for name, found in names.items()
                if len(found) > 1
            ),
        ]

    def versions(self) -> dict[str, str]:
        """The version of each package, beside permllm, whose plugins are loaded."""
        packages = {info.distribution: info.version for info in self._plugins if _is_foreign(info)}
        return dict(sorted(packages.items()))

    def digests(self, files: Iterable[Path]) -> dict[str, str]:
        """The SHA-256 of plugins of one file, by path, as they were loaded."""
        wanted = set(files)
        return {str(info.file): info.sha256 for info in self._plugins if info.file in wanted}

    def components(self, kind: str) -> dict[str, Entry]:
        """Components of a kind by the name that a pipeline file uses (:meth:`reference`)."""
        self._gather()
        return {
            self.reference(entry): entry
            for _, found in sorted(self._entries[kind].items())
            for entry in found
        }

    def component(self, kind: str, name: str) -> type[Component]:
        """The component class of a name or of ``package:name``.

        A bare name means the built-in component if there is one, whatever is installed.

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
        else:
            found = [entry for entry in found if entry.plugin.built_in] or found
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{_owners(found)} both have the {kind} '{bare}'",
                hint=f"say which one: {' or '.join(self.reference(e) for e in found)}",
            )
        raise self._unknown(kind, name, package)

    def reference(self, entry: Entry) -> str:
        """The name that finds this component: bare, or ``package:name`` on a clash.

        Built-in components keep their bare names.
        """
        name = entry.cls.name
        kind = next(kind for kind, base in KINDS.items() if issubclass(entry.cls, base))
        clash = len(self._entries[kind].get(name, [])) > 1
        return f"{entry.plugin.package}:{name}" if clash and not entry.plugin.built_in else name

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
        lost = [f"{i} ({i.error})" for i in self._unusable()]
        off = [str(info.name) for info in self._plugins if info.status == "disabled"]
        if lost:
            hint += f"; plugins that cannot be used: {', '.join(lost)}"
        if off:
            hint += f"; plugins that are switched off: {', '.join(off)}"
        return UserError(f"unknown {kind} '{name}'", hint=hint)

    def _clash(self, kind: str, name: str, found: list[Entry]) -> str:
        others = [entry for entry in found if not entry.plugin.built_in]
        if len(others) == len(found):
            return f"{_owners(found)} both have the {kind} '{name}'; name it as 'package:{name}'"
        names = " and ".join(f"'{self.reference(entry)}'" for entry in others)
        return (
            f"the {kind} '{name}' is permllm's own, although {_owners(others)} has one, too; "
            f"name that as {names}"
        )

    def _unusable(self) -> list[PluginInfo]:
        return [info for info in self.plugins if info.unusable]

    def _is_off(self, info: PluginInfo) -> bool:
        return bool(self._off & {normal(info.name), normal(info.package)})

    def _load(self, entry_point: EntryPoint) -> None:
        dist = entry_point.dist
        info = PluginInfo(entry_point.name, dist.name if dist else "", dist.version if dist else "")
        self._plugins.append(info)
        if self._is_off(info):
            info.status = "disabled"
            return
        if dist and not info.built_in and (reason := incompatibility(dist, __version__)):
            info.status, info.error = "incompatible", reason
            return
        try:
            plugin = entry_point.load()
        except (Exception, SystemExit) as error:
            # A stranger's module: whatever it raises is its own fault, not the run's.
            info.broke(f"it cannot be imported: {_shown(error, info)}")
        else:
            self._register(info, plugin)

    def _register(self, info: PluginInfo, plugin: object) -> None:
        if self.manager.is_registered(plugin):
            info.broke(f"it is the same object as the plugin '{self.manager.get_name(plugin)}'")
            return
        taken = self.manager.has_plugin(info.name)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", DeprecatedWarning)
                self.manager.register(plugin, f"{info}:{info.name}" if taken else info.name)
        except (ValueError, TypeError, pluggy.PluginValidationError) as error:
            info.broke(" ".join(str(error).split()))
        else:
            info.deprecations = tuple(str(warning.message) for warning in caught)
            if wrong := wrong_hooks(self.manager, plugin):
                info.broke(wrong)
        if info.error:
            self._forget(info, plugin)
            return
        self._guard(plugin, f"the plugin '{info.name}'", info)
        self._ungathered.append((info, plugin))

    def _guard(self, plugin: object, who: str, info: PluginInfo | None) -> None:
        """Keep errors of a plugin's life-cycle hooks from the run."""
        guard_hooks(self.manager, plugin, partial(self._warn_of_failure, plugin, who, info))

    def _warn_of_failure(
        self, plugin: object, who: str, info: PluginInfo | None, hook: str, error: Exception
    ) -> None:
        owner = f" ({info})" if info else ""
        message = f"{who}{owner} broke in {hook} and is told nothing more: {_shown(error, info)}"
        tell = self.manager.hook.permllm_warning
        if any(listener.plugin is not plugin for listener in tell.get_hookimpls()):
            tell(message=message)
        else:
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _forget(self, info: PluginInfo, plugin: object) -> None:
        if self.manager.is_registered(plugin):
            self.manager.unregister(plugin)
        for kind, names in info.components.items():
            for name in names:
                entries = self._entries[kind]
                entries[name] = [entry for entry in entries[name] if entry.plugin is not info]

    def _refuse_built_in_names(self, info: PluginInfo) -> None:
        """Nobody may take a file's own component for the built-in one of its name."""
        for kind, names in info.components.items():
            for name in names:
                if any(entry.plugin.built_in for entry in self._entries[kind][name]):
                    info.broke(f"the {kind} '{name}' is built in; give it another name")

    def _gather(self) -> None:
        """Ask plugins for components. Late, since that imports torch and what else they need."""
        while self._ungathered:
            info, plugin = self._ungathered.pop(0)
            for kind in KINDS:
                self._gather_kind(info, plugin, kind)

    def _gather_kind(self, info: PluginInfo, plugin: object, kind: str) -> None:
        hook = getattr(self.manager.hook, COMPONENT_HOOKS[kind])
        for implementation in hook.get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            try:
                offered = list(implementation.function())
            except (Exception, SystemExit) as error:
                # As on import: somebody else's code.
                info.broke(f"its hook {COMPONENT_HOOKS[kind]} failed: {_shown(error, info)}")
                continue
            for cls in offered:
                self._accept(info, kind, cls)

    def _accept(self, info: PluginInfo, kind: str, cls: Any) -> None:
        try:
            wrong = problem(kind, KINDS[kind], cls)
        except Exception as error:
            # Looking at a class runs its metaclass and properties: somebody else's code.
            wrong = f"{cls!r} cannot be looked at: {_shown(error, info)}"
        if wrong:
            info.broke(f"{kind}: {wrong}")
            return
        found = self._entries[kind].setdefault(cls.name, [])
        if any(entry.plugin is info for entry in found):
            info.broke(f"it has two {kind}s called '{cls.name}'")
            return
        found.append(Entry(cls, info))
        info.components[kind] = (*info.components.get(kind, ()), cls.name)


def _is_foreign(info: PluginInfo) -> bool:
    return bool(info.distribution) and not info.built_in and info.status == "loaded"


def _owners(entries: Iterable[Entry]) -> str:
    return " and ".join(str(entry.plugin) for entry in entries)


def _shown(error: BaseException, info: PluginInfo | None) -> str:
    """An error, and how to install what it misses."""
    way = missing_dependency(info.distribution, error) if info else None
    return f"{type(error).__name__}: {error}" + (f" ({way})" if way else "")
