"""What is wrong with plugins, in sentences for the user, and which of them an error comes from."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from permllm.commands import pip_install
from permllm.errors import UserError, causes, did_you_mean
from permllm.given import GivenWrong
from permllm.plugins.info import BUILT_IN, Entry, PluginInfo, normal
from permllm.plugins.loading import plugin_entry_points
from permllm.plugins.requirements import missing_dependency
from permllm.plugins.single_file import MODULE_PREFIX


def plugin_warnings(plugins: Sequence[PluginInfo], entries: Iterable[Entry]) -> Iterator[str]:
    """A sentence on each plugin that cannot be used, is out of date, or clashes with another."""
    for info in _unusable(plugins):
        yield f"the plugin '{info.name}' ({info}) is {info.status}: {info.error}"
    for info in plugins:
        for what in info.deprecations:
            yield f"the plugin '{info.name}' ({info}) uses what is deprecated: {what}"
    alike: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        alike.setdefault((entry.kind, entry.cls.name), []).append(entry)
    for (kind, name), group in alike.items():
        if len(group) > 1:
            yield _clash(kind, name, group)


def unknown(kind: str, name: str, known: Iterable[str], plugins: Sequence[PluginInfo]) -> UserError:
    """That there is no component ``name`` or ``package:name``, and where it might be."""
    package, _, bare = name.rpartition(":")
    hint = did_you_mean(bare, known)
    if package and not any(info.is_called(package) for info in plugins):
        hint = f"no package '{package}' with a plugin is installed: {pip_install(package)}"
    if lost := [f"{info} ({info.error})" for info in _unusable(plugins)]:
        hint += f"; plugins that cannot be used: {', '.join(lost)}"
    if off := [info.name for info in plugins if info.status == "disabled"]:
        hint += f"; plugins that are switched off: {', '.join(off)}"
    return UserError(f"unknown {kind} '{name}'", hint=hint)


def ambiguous(kind: str, name: str, entries: Sequence[Entry]) -> UserError:
    """That several plugins have a component of this name."""
    names = " or ".join(f"{entry.plugin.package}:{name}" for entry in entries)
    return UserError(f"{_both(entries)} the {kind} '{name}'", hint=f"say which one: {names}")


def blamed(error: BaseException) -> tuple[str, str | None] | None:
    """The plugin whose code an error went through last, and what to install if it misses something.

    Of a wrong value, that which gave it.

    Returns:
        its package and version, or its file, and an installer's command or None; None
        where no plugin's code took part.
    """
    owners = {point.module.partition(".")[0]: point.dist for point in plugin_entry_points()}
    for module in reversed(list(_modules(error))):
        name = module.get("__name__", "")
        if name.startswith(MODULE_PREFIX):
            return module["__file__"], None
        dist = owners.get(name.partition(".")[0])
        if dist and normal(dist.name) != BUILT_IN:
            return f"{dist.name} {dist.version}", missing_dependency(dist.name, error)
    return None


def blames_a_file(error: BaseException) -> bool:
    """Whether a plugin of a single file broke or gave a wrong value, and has to be changed."""
    return any(
        module.get("__name__", "").startswith(MODULE_PREFIX)
        for cause in causes(error)
        for module in _modules(cause)
    )


def _modules(error: BaseException) -> Iterator[dict[str, Any]]:
    """The names of each module that an error comes from, those of the first to blame last."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield frame.f_globals
    if isinstance(error, GivenWrong):
        yield vars(sys.modules[error.module])


def _clash(kind: str, name: str, entries: list[Entry]) -> str:
    others = [entry for entry in entries if not entry.plugin.built_in]
    if others == entries:
        return f"{_both(others)} the {kind} '{name}'; name it as 'package:{name}'"
    owners = " and ".join(str(entry.plugin) for entry in others)
    names = " and ".join(f"'{entry.plugin.package}:{name}'" for entry in others)
    return (
        f"the {kind} '{name}' is permllm's own, although {owners} has one, too; "
        f"name that as {names}"
    )


def _both(entries: Iterable[Entry]) -> str:
    return " and ".join(str(entry.plugin) for entry in entries) + " both have"


def _unusable(plugins: Iterable[PluginInfo]) -> list[PluginInfo]:
    """Those that their authors or the user have to mend."""
    return [info for info in plugins if info.status in ("broken", "incompatible")]
