"""What a plugin's package says that it needs: a range of permllm, and other packages.

All of this is read from the metadata of installed packages; nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from permllm.commands import pip_install
from permllm.plugins.info import BUILT_IN, normal


def incompatibility(dist: metadata.Distribution, version: str) -> str | None:
    """Why a plugin's package does not go with a version of permllm, and what to install.

    Returns:
        a sentence; None where they go together, or the package states no range.
    """
    for need, extra in _needs(dist):
        if normal(need.name) == BUILT_IN and not extra and not _holds(need, version):
            # The lower bound first: permllm>=0.1,<0.2
            extras = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
            spelt = BUILT_IN + extras + ",".join(sorted(map(str, need.specifier), reverse=True))
            way = pip_install(spelt)
            if not _is_for_later(need, Version(version)):
                way = f"{pip_install('--upgrade', dist.name)}, or {way}"
            return f"it needs {spelt}, and this is permllm {version}: {way}"
    return None


def missing_dependency(distribution: str, error: BaseException) -> str | None:
    """How to install what a plugin's package imports and does not find, or whom to tell.

    Args:
        distribution: the package; may be empty.
        error: what its import, or a call of it, raised. None comes of one of another kind.
    """
    missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    if not distribution or not isinstance(missing, ModuleNotFoundError) or not missing.name:
        return None
    module = missing.name.partition(".")[0]
    try:
        needs = list(_needs(metadata.distribution(distribution)))
    except metadata.PackageNotFoundError:
        return None
    named = [(need, extra) for need, extra in needs if normal(need.name) == normal(module)]
    # A module may be called otherwise than its package: then what is not installed is meant.
    extras = sorted({extra for need, extra in named or needs if not _is_met(need)})
    if normal(module) == normal(distribution) or (named and not extras):
        return None
    if not extras:
        return f"{distribution} does not say which package has '{module}': tell its authors"
    # Without an extra, everybody needs it: whoever installed the package left it out.
    wanted = f"{distribution}[{','.join(extras)}]" if extras[0] else distribution
    return pip_install(wanted)


def described(error: BaseException, distribution: str) -> str:
    """An error of a plugin of this package, and how to install what it misses."""
    way = missing_dependency(distribution, error)
    return f"{type(error).__name__}: {error}" + (f" ({way})" if way else "")


def _needs(dist: metadata.Distribution) -> Iterator[tuple[Requirement, str]]:
    """What is required on this machine, once, with the extra that asks for it or ``""``."""
    extras = ["", *(dist.metadata.get_all("Provides-Extra") or [])]
    for line in dist.requires or []:
        try:
            need = Requirement(line)
        except InvalidRequirement:
            # Metadata of another age; installers pass over it, too.
            continue
        marker = need.marker
        asking = [extra for extra in extras if not marker or marker.evaluate({"extra": extra})]
        yield from ((need, extra) for extra in asking[:1])


def _holds(need: Requirement, version: str) -> bool:
    return need.specifier.contains(version, prereleases=True)


def _is_met(need: Requirement) -> bool:
    try:
        return _holds(need, metadata.version(need.name))
    except (metadata.PackageNotFoundError, InvalidVersion):
        return False


def _is_for_later(need: Requirement, version: Version) -> bool:
    bounds = [clause for clause in need.specifier if clause.operator in (">", ">=", "==", "~=")]
    return any(Version(bound.version.removesuffix(".*")) > version for bound in bounds)
