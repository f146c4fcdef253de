"""Writes a new plugin package: a component that works, its tests, and all around it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from string import Template

import attrs
from packaging.version import Version

from permllm.components import KINDS
from permllm.errors import UserError
from permllm.plugins.checks import COMPONENT_HOOKS
from permllm.plugins.info import normal
from permllm.version import __version__

MAX_NAME = 24
"""The longest name; lines of code with it have to fit."""

FILES = {
    ".github/workflows/test.yml": "common/workflow.yml",
    ".gitignore": "common/gitignore",
    "README.md": "common/README.md",
    "pyproject.toml": "common/pyproject.toml",
    "$module/__init__.py": "common/package.py",
    "$module/plugin.py": "common/plugin.py",
    "$module/$kind.py": "$kind/component.py",
    "tests/test_plugin.py": "common/test_plugin.py",
    "tests/test_$kind.py": "$kind/test.py",
}
"""The template of each file of a package."""


@attrs.frozen
class Example:
    """The component that is written for a kind.

    Attributes:
        what: the kind in prose.
        suffix: what its class's name ends in.
        description: of the package.
        requires: what its code imports beside permllm.
    """

    what: str
    suffix: str
    description: str
    requires: tuple[str, ...] = ("attrs>=24.2", "torch>=2.4")


EXAMPLES = {
    "metric": Example("metric", "Metric", "Importance by the weight's size to a power"),
    "permutation": Example("permutation learner", "Learner", "Channels dealt to groups by rank"),
    "pruner": Example("pruner", "Pruner", "A mask that keeps the size of each row's output"),
    "evaluator": Example("evaluator", "Evaluator", "Accuracy of the next token"),
    "dataset": Example("dataset", "Dataset", "Text files of a folder", ("attrs>=24.2",)),
    "exporter": Example(
        "exporter",
        "Exporter",
        "The weights alone, in one file",
        ("attrs>=24.2", "safetensors>=0.4.5", "torch>=2.4"),
    ),
    "observer": Example("observer", "Observer", "Training losses as a table", ("attrs>=24.2",)),
}
"""By kind of component."""


@attrs.frozen
class NewPlugin:
    """The names of a package to write.

    Attributes:
        name: its component's, and its entry point's.
        kind: of its component.
    """

    name: str
    kind: str

    @property
    def distribution(self) -> str:
        """Such as ``permllm-power``."""
        return f"permllm-{self.name}"

    @property
    def module(self) -> str:
        """Such as ``permllm_power``."""
        return self.distribution.replace("-", "_")

    @property
    def cls(self) -> str:
        """Such as ``PowerMetric``."""
        words = "".join(word.capitalize() for word in self.name.split("-"))
        suffix = EXAMPLES[self.kind].suffix
        says_so = words.endswith(suffix) and words != KINDS[self.kind].__name__
        return words if says_so else words + suffix

    def values(self) -> dict[str, str]:
        """What the templates' names stand for."""
        example = EXAMPLES[self.kind]
        return {
            "name": self.name,
            "kind": self.kind,
            "distribution": self.distribution,
            "module": self.module,
            "cls": self.cls,
            "base": KINDS[self.kind].__name__,
            "hook": COMPONENT_HOOKS[self.kind],
            "what": example.what,
            "description": example.description,
            "dependencies": ", ".join(f'"{package}"' for package in example.requires),
            "range": version_range(__version__),
        }


def named(name: str, kind: str, taken: Iterable[tuple[str, str, str]]) -> NewPlugin:
    """The names of a new package.

    Args:
        name: of the component, or of the package: ``power``, or ``permllm-power``.
        kind: of the component.
        taken: the kind, name and package of every component that there is.

    Raises:
        UserError: it is no package's name, or something has it already.
    """
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise UserError(
            f"'{name}' is no name for a package: it takes letters, digits and -_. between them, "
            "and starts with a letter"
        )
    plugin = NewPlugin(normal(name).removeprefix("permllm-"), kind)
    if not plugin.name[0].isalpha() or len(plugin.name) > MAX_NAME:
        raise UserError(
            f"'{plugin.name}' is no name for a component: it starts with a letter and has at most "
            f"{MAX_NAME} characters"
        )
    if plugin.name == "permllm" or plugin.name in KINDS:
        raise UserError(f"'{plugin.name}' says nothing about a {kind}", hint="say what it does")
    for other_kind, other, package in taken:
        if plugin.name == normal(other):
            raise UserError(
                f"there is a {other_kind} '{other}' already, in {package}", hint="take another name"
            )
    _refuse_installed(plugin)
    return plugin


def write_package(plugin: NewPlugin, parent: Path) -> Path:
    """Write the package to a folder of its own in ``parent``, which is made if need be.

    Returns:
        the folder.

    Raises:
        UserError: the folder exists, or cannot be written; nothing is left behind.
    """
    folder = parent / plugin.distribution
    if folder.exists():
        raise UserError(f"'{folder}' exists already", hint="take another name, or another --out")
    unfinished = parent / f".{plugin.distribution}.partial"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if unfinished.exists():
            shutil.rmtree(unfinished)
        for path, text in rendered(plugin).items():
            file = unfinished / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        unfinished.rename(folder)
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def rendered(plugin: NewPlugin) -> dict[str, str]:
    """The text of every file of the package, by its path."""
    values = plugin.values()
    values["usage"] = _filled(f"{plugin.kind}/usage.yaml", values)
    files = {
        Template(path).substitute(values): _filled(Template(template).substitute(values), values)
        for path, template in FILES.items()
    }
    return files | {f"{plugin.module}/py.typed": ""}


def version_range(version: str) -> str:
    """The versions that promise not to break a plugin made for ``version``: ``>=0.1,<0.2``."""
    major, minor = Version(version).release[:2]
    above = f"{major}.{minor + 1}" if major == 0 else str(major + 1)
    return f">={major}.{minor},<{above}"


def _filled(template: str, values: dict[str, str]) -> str:
    folder = resources.files("permllm.plugins") / "templates"
    return Template((folder / f"{template}.tmpl").read_text(encoding="utf-8")).substitute(values)


def _refuse_installed(plugin: NewPlugin) -> None:
    try:
        found = metadata.version(plugin.distribution)
    except metadata.PackageNotFoundError:
        pass
    else:
        raise UserError(
            f"a package '{plugin.distribution}' is installed already: {found}",
            hint="take another name, or pip uninstall it",
        )
    if find_spec(plugin.module) is not None:
        raise UserError(
            f"there is a module '{plugin.module}' already, which this would hide",
            hint="take another name",
        )
