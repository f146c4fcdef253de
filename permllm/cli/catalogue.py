"""What the installed plugins add, as plain data, which is kept from one call to the next.

To ask plugins for their components imports torch and whatever else they compute with,
which takes seconds. So the answer is kept in the user's cache folder for as long as
nothing changes that it depends on: the installed packages, and the files of the plugins.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from permllm.files import write_text
from permllm.plugins.loading import plugin_entry_points, switched_off
from permllm.version import __version__

if TYPE_CHECKING:
    from permllm.components import Component
    from permllm.plugins.info import PluginInfo
    from permllm.registry import Registry


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
    disabled = tuple(disabled)
    path, state = _kept_at(), _state(disabled)
    if path and (kept := _read(path, state)):
        return kept
    from permllm.registry import Registry

    found = catalogue(Registry.load(disabled))
    if path and all(plugin["error"] is None for plugin in found.plugins):
        _keep(path, state, found)
    return found


def catalogue(registry: Registry) -> Catalogue:
    """The catalogue of a registry's plugins."""
    plugins = [_plugin(info, registry) for info in registry.plugins]
    return Catalogue(plugins, registry.warnings)


def _plugin(info: PluginInfo, registry: Registry) -> dict[str, Any]:
    return {
        "name": info.name,
        "version": info.version,
        "distribution": info.distribution,
        "components": [
            _component(kind, reference, entry.cls)
            for kind in info.components
            for reference, entry in registry.components(kind).items()
            if entry.plugin is info
        ],
        "status": info.status,
        "error": info.error,
        "deprecations": list(info.deprecations),
    }


def _component(kind: str, reference: str, cls: type[Component]) -> dict[str, Any]:
    """A component; ``reference`` is the name that finds it, with its package on a clash."""
    presets = getattr(cls, "presets", {})
    return {
        "kind": kind,
        "name": cls.name,
        "reference": reference,
        "summary": cls.summary(),
        "description": inspect.getdoc(cls) or "",
        "options": _options(cls),
        "presets": {preset: dict(options) for preset, options in presets.items()},
    }


def _options(cls: type[Component]) -> list[dict[str, Any]]:
    from permllm.pipeline.options import describe_options

    return [
        {
            "name": option.name,
            "type": option.type_text,
            "required": option.required,
            "default": option.default,
            "range": option.range,
            "help": option.help,
            "deprecated": option.deprecated or None,
        }
        for option in describe_options(cls)
    ]


# --- from one call to the next ------------------------------------------------


def _kept_at() -> Path | None:
    """The file of this Python's catalogue; None where there is no cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        cache = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # nobody's home
        return None
    return cache / "permllm" / f"plugins-{_digest(sys.prefix)[:16]}.json"


def _state(disabled: tuple[str, ...]) -> str:
    """A digest of all that the catalogue depends on, for which nothing is imported."""
    found = plugin_entry_points()
    modules = {entry_point.module.partition(".")[0] for entry_point in found}
    parts = [
        __version__,
        sys.version,
        switched_off(disabled),
        [(entry_point.name, entry_point.value) for entry_point in found],
        sorted(_installed_packages()),
        sorted(fact for module in modules for fact in _source_files(module)),
    ]
    return _digest(json.dumps(parts))


def _installed_packages() -> Iterator[str]:
    """Name and version of every package, as its folder of metadata spells them."""
    for folder in dict.fromkeys(sys.path):
        with contextlib.suppress(OSError):
            for entry in os.scandir(folder or "."):
                if entry.name.endswith((".dist-info", ".egg-info")):
                    yield entry.path


def _source_files(module: str) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of change of the files of a package, or of a single module."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    for file in files or [Path(spec.origin or module)]:
        with contextlib.suppress(OSError):
            facts = file.stat()
            yield str(file), facts.st_size, facts.st_mtime_ns


def _read(path: Path, state: str) -> Catalogue | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Catalogue(kept["plugins"], kept["warnings"]) if kept["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, state: str, found: Catalogue) -> None:
    # Without a place to write to, the next call takes as long as this one.
    with contextlib.suppress(OSError):
        write_text(path, json.dumps({"state": state} | attrs.asdict(found)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
