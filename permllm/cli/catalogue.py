"""What the installed plugins add, as plain data, which is kept from one call to the next.

To ask plugins for their components imports torch and whatever else they compute with,
which takes seconds. So the answer is kept in the user's cache folder for as long as
nothing changes that it depends on: the installed packages, and the files of the plugins.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from permllm.files import write_text
from permllm.plugins.loading import plugin_entry_points, switched_off
from permllm.version import __version__

if TYPE_CHECKING:
    from permllm.fields.options import OptionInfo
    from permllm.registry import Entry, PluginInfo, Registry


@attrs.frozen
class Catalogue:
    """What ``permllm plugins`` shows.

    Attributes:
        plugins: each plugin with its components and their options, as ``--json`` prints it.
        warnings: what is wrong with them, in sentences for the user.
    """

    plugins: list[dict[str, Any]]
    warnings: list[str]


def installed(disabled: Iterable[str] = ()) -> Catalogue:
    """The catalogue of all installed plugins but the ``disabled`` ones.

    One with a plugin that cannot be used is not kept: what is wrong with it may be mended
    by something that is not looked at here.
    """
    off = switched_off(disabled)
    state = _digest(_state(off))
    # A damaged file, or nowhere to keep one: then the call takes as long as the first.
    with suppress(OSError, RuntimeError, ValueError, KeyError, TypeError):
        kept = json.loads(_kept_at().read_text(encoding="utf-8"))
        if kept["state"] == state:
            return Catalogue(kept["plugins"], kept["warnings"])
    from permllm.registry import Registry

    fresh = catalogue(Registry.load(off))
    if all(plugin["error"] is None for plugin in fresh.plugins):
        with suppress(OSError, RuntimeError):
            write_text(_kept_at(), json.dumps({"state": state} | attrs.asdict(fresh)))
    return fresh


def catalogue(registry: Registry) -> Catalogue:
    """The catalogue of a registry's plugins."""
    plugins = [_plugin(info, registry) for info in registry.plugins]
    return Catalogue(plugins, registry.warnings)


def _plugin(info: PluginInfo, registry: Registry) -> dict[str, Any]:
    components = [
        _component(reference, entry)
        for kind in info.components
        for reference, entry in registry.components(kind).items()
        if entry.plugin is info
    ]
    keys = ("name", "version", "distribution", "status", "error")
    facts = {"components": components, "deprecations": list(info.deprecations)}
    return {key: getattr(info, key) for key in keys} | facts


def _component(reference: str, entry: Entry) -> dict[str, Any]:
    """A component; ``reference`` is the name that finds it, with its package on a clash."""
    from permllm.fields.options import describe_options

    presets = getattr(entry.cls, "presets", {})
    return {
        "kind": entry.kind,
        "name": entry.cls.name,
        "reference": reference,
        "summary": entry.cls.summary(),
        "description": inspect.getdoc(entry.cls) or "",
        "options": [_option(option) for option in describe_options(entry.cls)],
        "presets": {preset: dict(options) for preset, options in presets.items()},
    }


def _option(option: OptionInfo) -> dict[str, Any]:
    keys = ("name", "required", "default", "range", "help")
    facts = {"type": option.type_text, "deprecated": option.deprecated or None}
    return {key: getattr(option, key) for key in keys} | facts


def _kept_at() -> Path:
    """The file of this Python's catalogue; a ``RuntimeError`` where nobody is at home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    folder = Path(base) if base else Path.home() / ".cache"
    return folder / "permllm" / f"plugins-{_digest([sys.prefix])[:16]}.json"


def _state(off: list[str]) -> list[Any]:
    """All that the catalogue depends on; nothing is imported for it."""
    points = plugin_entry_points()
    names = [(point.name, point.value) for point in points]
    packages = [str(path) for place in sys.path for path in Path(place).glob("*.*-info")]
    modules = {point.module.partition(".")[0] for point in points}
    files = [facts for module in modules for facts in _source_files(module)]
    return [__version__, sys.version, off, names, sorted(packages), sorted(files)]


def _source_files(module: str) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of change of the files of a package, or of a single module."""
    spec = None
    with suppress(ImportError, ValueError):
        spec = find_spec(module)
    places = (spec.submodule_search_locations or [spec.origin or module]) if spec else []
    for place in map(Path, places):
        for file in place.rglob("*.py") if place.is_dir() else [place]:
            with suppress(OSError):
                yield str(file), file.stat().st_size, file.stat().st_mtime_ns


def _digest(facts: list[Any]) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
