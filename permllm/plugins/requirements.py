"""What a plugin's package says that it needs: a range of permllm, and other packages.

All of this is read from the metadata of installed packages; nothing is imported for it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from importlib import metadata

import attrs
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import Specifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from permllm.plugins.info import BUILT_IN, normal


@attrs.frozen
class Need:
    """A package that a distribution requires.

    Attributes:
        name: the package, as indexes compare names.
        versions: those that it may have.
        extra: the extra of the distribution that asks for it; empty for all users.
    """

    name: str
    versions: SpecifierSet
    extra: str = ""

    @property
    def met(self) -> bool:
        """Whether such a version of it is installed."""
        try:
            return self.versions.contains(metadata.version(self.name), True)
        except (metadata.PackageNotFoundError, InvalidVersion):
            return False


def needs(dist: metadata.Distribution) -> Iterator[Need]:
    """What a distribution requires on this machine, once for each extra that asks for it."""
    extras = dist.metadata.get_all("Provides-Extra") or []
    for line in dist.requires or []:
        try:
            found = Requirement(line)
        except InvalidRequirement:
            # Metadata of another age; installers pass over it, too.
            continue
        for extra in ("", *extras):
            if found.marker is None or found.marker.evaluate({"extra": extra}):
                yield Need(normal(found.name), found.specifier, extra)
                break


def incompatibility(dist: metadata.Distribution, version: str) -> str | None:
    """Why a plugin's package does not go with a version of permllm, and what to install.

    Args:
        dist: the package; what it requires of permllm is the range that it was made for.
        version: of permllm.

    Returns:
        a sentence; None where they go together, or the package states no range.
    """
    mine = Version(version)
    for need in needs(dist):
        if need.name == BUILT_IN and not need.extra and not need.versions.contains(mine, True):
            return (
                f"it needs {_spelt(need)}, and this is permllm {version}: {_way(dist, need, mine)}"
            )
    return None


def missing_dependency(distribution: str, error: BaseException) -> str | None:
    """How to install what a plugin imports and does not find.

    Args:
        distribution: the plugin's package.
        error: what its import, or a call of it, raised.

    Returns:
        an installer's command, or whom to tell; None where nothing is missing.
    """
    missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    if not distribution or not isinstance(missing, ModuleNotFoundError) or not missing.name:
        return None
    module = missing.name.partition(".")[0]
    if normal(module) == normal(distribution):
        return None
    try:
        known = list(needs(metadata.distribution(distribution)))
    except metadata.PackageNotFoundError:
        return None
    named = [need for need in known if need.name == normal(module)]
    # A module may be called otherwise than its package: then what is not installed is meant.
    extras = sorted({need.extra for need in named or known if not need.met})
    if not extras:
        unknown = f"{distribution} does not say which package has '{module}': tell its authors"
        return None if named else unknown
    # Without an extra, everybody needs it: whoever installed the package left it out.
    wanted = f"{distribution}[{','.join(extras)}]" if extras[0] else distribution
    return f"pip install {shlex.quote(wanted)}"


def _spelt(need: Need) -> str:
    """``permllm>=0.1,<0.2``, the lower bound first."""
    return need.name + ",".join(sorted(map(str, need.versions), reverse=True))


def _way(dist: metadata.Distribution, need: Need, mine: Version) -> str:
    """The command that brings a plugin and permllm together."""
    broken = [clause for clause in need.versions if not clause.contains(mine, True)]
    if any(_is_above(clause, mine) for clause in broken):
        return f"pip install {shlex.quote(_spelt(need))}"
    return f"pip install --upgrade {dist.name}, or pip install {shlex.quote(_spelt(need))}"


def _is_above(clause: Specifier, mine: Version) -> bool:
    """Whether a clause asks for something newer than ``mine``."""
    if clause.operator in ("<", "<=", "!="):
        return False
    try:
        return Version(clause.version.removesuffix(".*")) > mine
    except InvalidVersion:  # an arbitrary string after ===
        return False
