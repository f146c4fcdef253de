"""Loads plugins: those that are installed, their hooks, and the components that they offer.

They are loaded one by one, so that one that breaks is known by its package and version
and never takes the others with it. Built-in components come in by the same door.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from permllm.errors import DeprecatedWarning
from permllm.hooks import PROJECT
from permllm.plugins.checks import COMPONENT_HOOKS, wrong_component, wrong_hooks
from permllm.plugins.guard import guard_hooks
from permllm.plugins.info import BUILT_IN, Entry, PluginInfo, normal
from permllm.plugins.requirements import described, incompatibility
from permllm.version import __version__

DISABLE_VARIABLE = "PERMLLM_DISABLE_PLUGINS"
"""Environment variable with the names of plugins not to load, separated by commas."""


def switched_off(disabled: Iterable[str]) -> list[str]:
    """The names of plugins and packages not to load, those of the environment included."""
    names = [*disabled, *os.environ.get(DISABLE_VARIABLE, "").split(",")]
    return sorted({normal(name) for name in names if name.strip()})


def plugin_entry_points() -> list[EntryPoint]:
    """The plugins' entry points: permllm's own first, the others by package."""
    by_key: dict[tuple[str, str], EntryPoint] = {}
    for point in entry_points(group=PROJECT):
        # A package that two folders of the path hold counts once, as on import.
        by_key.setdefault((normal(point.dist.name if point.dist else ""), point.name), point)
    return [by_key[key] for key in sorted(by_key, key=lambda key: (key[0] != BUILT_IN, key))]


def load_entry_point(point: EntryPoint, off: Iterable[str]) -> tuple[PluginInfo, object]:
    """An installed plugin that is not ``off``, and what its entry point names.

    That is None unless the plugin's status is ``"loaded"``.
    """
    dist = point.dist
    info = PluginInfo(point.name, dist.name if dist else "", dist.version if dist else "")
    if any(map(info.is_called, off)):
        info.status = "disabled"
    elif dist and not info.built_in and (reason := incompatibility(dist, __version__)):
        info.status, info.error = "incompatible", reason
    else:
        try:
            return info, point.load()
        except (Exception, SystemExit) as error:
            # A stranger's module: whatever it raises is its own fault, not the run's.
            info.broke(f"it cannot be imported: {described(error, info.distribution)}")
    return info, None


def register(manager: pluggy.PluginManager, info: PluginInfo, plugin: object) -> None:
    """Have a plugin's hooks called, or say in ``info`` why they cannot be."""
    if manager.is_registered(plugin):
        info.broke(f"it is the same object as the plugin '{manager.get_name(plugin)}'")
        return
    name = f"{info}:{info.name}" if manager.has_plugin(info.name) else info.name
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DeprecatedWarning)
            manager.register(plugin, name)
        wrong = wrong_hooks(manager, plugin)
    except (ValueError, TypeError, pluggy.PluginValidationError) as error:
        wrong = " ".join(str(error).split())
    if not wrong:
        info.deprecations = tuple(str(warning.message) for warning in caught)
        guard_hooks(manager, plugin, f"the plugin '{info.name}' ({info})", info.distribution)
        return
    info.broke(wrong)
    if manager.is_registered(plugin):
        manager.unregister(plugin)


def entries_of(manager: pluggy.PluginManager, info: PluginInfo, plugin: object) -> list[Entry]:
    """The components of a registered plugin; what is wrong with the others is in ``info`` then.

    To ask for them imports torch and what else they compute with.
    """
    entries = []
    for kind, cls in _offered(manager, info, plugin):
        names = info.components.get(kind, ())
        if wrong := wrong_component(kind, cls):
            info.broke(f"{kind}: {wrong}")
        elif cls.name in names:
            info.broke(f"it has two {kind}s called '{cls.name}'")
        else:
            info.components[kind] = (*names, cls.name)
            entries.append(Entry(kind, cls, info))
    return entries


def _offered(
    manager: pluggy.PluginManager, info: PluginInfo, plugin: object
) -> Iterator[tuple[str, Any]]:
    for kind, hook in COMPONENT_HOOKS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            try:
                offered = implementation.function()
                if not isinstance(offered, Iterable):
                    info.broke(f"its hook {hook} gave {offered!r}, not a list of classes")
                    continue
                yield from [(kind, cls) for cls in offered]
            except (Exception, SystemExit) as error:
                # As on import: somebody else's code.
                info.broke(f"its hook {hook} failed: {described(error, info.distribution)}")
