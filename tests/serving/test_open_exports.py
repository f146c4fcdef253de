"""Exports open, and commands say what is missing, where nothing that only prunes can be found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

SCRIPT = Path(__file__).with_name("open_exports.py")

HIDING = """\
import json, runpy, sys

modules, packages, script = json.loads(sys.argv[1])


class Hiding:
    '''Finds what another finds, but for what is hidden.'''

    def __init__(self, other):
        self.other = other

    def find_spec(self, name, *where):
        hidden = name.partition(".")[0] in modules
        return None if hidden else self.other.find_spec(name, *where)

    def find_distributions(self, *where):
        for found in getattr(self.other, "find_distributions", lambda *_: ())(*where):
            if found.metadata["Name"] not in packages:
                yield found

    def __getattr__(self, name):
        return getattr(self.other, name)


sys.meta_path[:] = map(Hiding, sys.meta_path)
runpy.run_path(script, run_name="__main__")
"""
"""Runs a script as if packages were not installed."""


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def brought(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """What is installed with a package and extras of it, itself included."""
    if (normal(name), extras) in seen:
        return set()
    seen.add((normal(name), extras))
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return set()
    found = {normal(name)}
    for need in map(Requirement, lines):
        if any(not need.marker or need.marker.evaluate({"extra": one}) for one in (*extras, "")):
            found |= brought(need.name, frozenset(need.extras), seen)
    return found


def only_pruning() -> tuple[list[str], list[str]]:
    """The modules, and the packages by their own names, that come with the extra alone."""
    serving = brought("permllm", frozenset(), set())
    hidden = brought("permllm", frozenset({"prune"}), set()) - serving
    modules = [
        module
        for module, owners in metadata.packages_distributions().items()
        if {normal(owner) for owner in owners} <= hidden
    ]
    names = [dist.metadata["Name"] for dist in metadata.distributions()]
    return modules, [name for name in names if normal(name) in hidden]


def test_a_server_needs_nothing_that_only_prunes() -> None:
    modules, packages = only_pruning()
    assert {"mlflow", "datasets", "matplotlib", "numba", "scipy", "ruamel", "cattrs"} <= {*modules}
    assert not {"torch", "transformers", "safetensors", "attrs", "yaml"} & {*modules}
    words = [sys.executable, "-c", HIDING, json.dumps([modules, packages, str(SCRIPT)])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("exports open, commands work or say what is missing\n")
