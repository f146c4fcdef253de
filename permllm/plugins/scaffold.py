"""Writes a new plugin package: a component that works, its tests, and all around it."""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Iterable
from importlib import metadata
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

TEMPLATES = Path(__file__).parent / "templates"
"""The files of every package (``common``) and of each kind, whose paths are templates, too."""


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
        suffix = self._base_words[-1]
        says_so = words.endswith(suffix) and words != KINDS[self.kind].__name__
        return words if says_so else words + suffix

    def values(self) -> dict[str, str]:
        """What the templates' names stand for."""
        own = {
            "name": self.name,
            "kind": self.kind,
            "distribution": self.distribution,
            "module": self.module,
            "cls": self.cls,
            "base": KINDS[self.kind].__name__,
            "hook": COMPONENT_HOOKS[self.kind],
            "what": " ".join(self._base_words).lower(),
            "range": version_range(__version__),
        }
        example = tomllib.loads((TEMPLATES / self.kind / "example.toml").read_text("utf-8"))
        return own | {key: Template(text).substitute(own) for key, text in example.items()}

    @property
    def _base_words(self) -> list[str]:
        return re.findall("[A-Z][a-z]+", KINDS[self.kind].__name__)


def named(name: str, kind: str, taken: Iterable[tuple[str, str, str]]) -> NewPlugin:
    """The names of a new package.

    Args:
        name: of the component, or of the package: ``power``, or ``permllm-power``.
        kind: of the component.
        taken: the kind, name and package of every component that there is.

    Raises:
        UserError: it is no package's name, or something has it already.
    """
    plugin = NewPlugin(normal(name).removeprefix("permllm-"), kind)
    if len(plugin.name) > MAX_NAME or not re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", plugin.name):
        raise UserError(
            f"'{name}' is no name for a plugin: it starts with a letter, takes letters, digits and "
            f"-_. between them, and has at most {MAX_NAME} characters"
        )
    if plugin.name == "permllm" or plugin.name in KINDS:
        raise UserError(f"'{plugin.name}' says nothing about a {kind}", hint="say what it does")
    for other_kind, other, package in taken:
        if plugin.name == normal(other):
            raise UserError(
                f"there is a {other_kind} '{other}' already, in {package}", hint="take another name"
            )
    if list(metadata.distributions(name=plugin.distribution)) or find_spec(plugin.module):
        raise UserError(
            f"a package '{plugin.distribution}' is installed already, or a module "
            f"'{plugin.module}', which this would hide",
            hint="take another name, or uninstall it",
        )
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
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as unfinished:
            for path, text in rendered(plugin).items():
                file = Path(unfinished, plugin.distribution, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            Path(unfinished, plugin.distribution).rename(folder)
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written: {error.strerror}") from error
    return folder


def rendered(plugin: NewPlugin) -> dict[str, str]:
    """The text of every file of the package, by its path."""
    values = plugin.values()
    texts = {
        file.relative_to(folder).with_suffix("").as_posix(): file.read_text("utf-8")
        for folder in (TEMPLATES / "common", TEMPLATES / plugin.kind)
        for file in sorted(folder.rglob("*.tmpl"))
    }
    return {
        Template(path).substitute(values): Template(text).substitute(values)
        for path, text in texts.items()
    }


def version_range(version: str) -> str:
    """The versions that promise not to break a plugin made for ``version``: ``>=0.1,<0.2``."""
    major, minor = Version(version).release[:2]
    above = f"{major}.{minor + 1}" if major == 0 else str(major + 1)
    return f">={major}.{minor},<{above}"
