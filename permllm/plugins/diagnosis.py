"""What is wrong with plugins that are loaded, or not loaded, in sentences for the user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from permllm.errors import UserError, did_you_mean
from permllm.plugins.info import Entry, PluginInfo


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
    yield from (
        _clash(kind, name, group) for (kind, name), group in alike.items() if len(group) > 1
    )


def unknown(kind: str, name: str, known: Iterable[str], plugins: Sequence[PluginInfo]) -> UserError:
    """That there is no such component, and where it might have come from.

    Args:
        kind, name: what was asked for, the name maybe with its package.
        known: what could have been.
        plugins: all, loaded or not.
    """
    package, _, bare = name.rpartition(":")
    hint = did_you_mean(bare, known)
    if package and not any(info.is_called(package) for info in plugins):
        hint = f"no package '{package}' with a plugin is installed: pip install {package}"
    if lost := [f"{info} ({info.error})" for info in _unusable(plugins)]:
        hint += f"; plugins that cannot be used: {', '.join(lost)}"
    if off := [info.name for info in plugins if info.status == "disabled"]:
        hint += f"; plugins that are switched off: {', '.join(off)}"
    return UserError(f"unknown {kind} '{name}'", hint=hint)


def ambiguous(kind: str, name: str, entries: Sequence[Entry]) -> UserError:
    """That several plugins have a component of this name."""
    names = " or ".join(f"{entry.plugin.package}:{name}" for entry in entries)
    return UserError(
        f"{_owners(entries)} both have the {kind} '{name}'", hint=f"say which one: {names}"
    )


def _clash(kind: str, name: str, entries: list[Entry]) -> str:
    others = [entry for entry in entries if not entry.plugin.built_in]
    if others == entries:
        return f"{_owners(others)} both have the {kind} '{name}'; name it as 'package:{name}'"
    names = " and ".join(f"'{entry.plugin.package}:{name}'" for entry in others)
    return (
        f"the {kind} '{name}' is permllm's own, although {_owners(others)} has one, too; "
        f"name that as {names}"
    )


def _owners(entries: Iterable[Entry]) -> str:
    return " and ".join(str(entry.plugin) for entry in entries)


def _unusable(plugins: Iterable[PluginInfo]) -> list[PluginInfo]:
    """Those that their authors or the user have to mend."""
    return [info for info in plugins if info.status in ("broken", "incompatible")]
