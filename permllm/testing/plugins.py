"""What every plugin must do, whatever it adds."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

from permllm.registry import Registry
from permllm.testing.expect import expect

HEAVY = ("torch", "transformers")
"""Packages that take seconds to import."""


def check_plugin(module: str, *, adds: Mapping[str, Sequence[str]]) -> None:
    """Fail unless a plugin loads as a whole and adds what it should.

    Its hooks exist, are not deprecated, and give the components that are expected, all of
    which fit their interfaces. To import it brings in neither torch nor transformers,
    since ``permllm --help`` imports every plugin: component classes are imported in hooks.

    Args:
        module: what its entry point names, such as ``"permllm_power.plugin"``.
        adds: the names of its components by kind; ``{}`` for observers of every run and
            for commands.
    """
    registry = Registry()
    info = registry.add(importlib.import_module(module), module)
    expect(not registry.warnings, f"plugin '{module}': {'; '.join(registry.warnings)}")
    added = {kind: sorted(names) for kind, names in info.components.items()}
    wanted = {kind: sorted(names) for kind, names in adds.items()}
    expect(added == wanted, f"plugin '{module}': adds {added}, where {wanted} is expected")
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    # The path of this process, which may hold more than a new one's.
    code = f"import sys; sys.path[:] = {sys.path}; {code}"
    imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    expect(
        imported == "[]",
        f"plugin '{module}': to import it imports {imported}; import components inside its hooks",
    )
