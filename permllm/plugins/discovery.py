"""Which plugins are installed, and which of them are switched off."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from permllm.hooks import PROJECT
from permllm.plugins.info import BUILT_IN, normal

DISABLE_VARIABLE = "PERMLLM_DISABLE_PLUGINS"
"""Environment variable with the names of plugins not to load, separated by commas."""


def switched_off(disabled: Iterable[str]) -> set[str]:
    """The names of plugins and packages not to load, as indexes compare them.

    Args:
        disabled: names beside those in the environment variable.
    """
    names = [*disabled, *os.environ.get(DISABLE_VARIABLE, "").split(",")]
    return {normal(name) for name in names if name.strip()}


def plugin_entry_points() -> list[EntryPoint]:
    """The plugins' entry points: permllm's own first, the others by package."""
    found: dict[tuple[str, str], EntryPoint] = {}
    for entry_point in entry_points(group=PROJECT):
        package = entry_point.dist.name if entry_point.dist else ""
        # A package that two folders of the path hold counts once, as on import.
        found.setdefault((normal(package), entry_point.name), entry_point)
    keys = sorted(found, key=lambda key: (key[0] != BUILT_IN, key))
    return [found[key] for key in keys]
