"""The extra ``prune``: the packages that pruning needs and that serving does without."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec

from packaging.requirements import Requirement

from permllm.commands import pip_install
from permllm.errors import UserError

PRUNE = "permllm[prune]"
"""What installs permllm with all of them."""


RAY = "permllm[ray]"
"""What installs it with what studies on a cluster need, too."""


def need_ray(what: str) -> None:
    """Refuse what needs a cluster where Ray is not installed.

    Args:
        what: was called, for people, such as ``"--on ray"``.

    Raises:
        UserError: it is not; with what to install.
    """
    if not _is_there("ray"):
        raise UserError(f"{what} needs {RAY}, of which ray is missing", hint=pip_install(RAY))


def need_prune(what: str, *names: str) -> None:
    """Refuse what prunes where only that is installed which opens exports.

    Args:
        what: was called, for people, such as ``"permllm.run"``.
        names: of the packages that it needs, as they are imported; all where there are none.

    Raises:
        UserError: with the packages that are missing, and what to install.
    """
    missing = missing_for_pruning(names)
    if missing:
        *most, last = missing
        which = f"{', '.join(most)} and {last} are" if most else f"{last} is"
        raise UserError(f"{what} needs {PRUNE}, of which {which} missing", hint=pip_install(PRUNE))


def missing_for_pruning(names: Iterable[str] = ()) -> list[str]:
    """Which of these packages, or of all that are needed to prune, are not there."""
    wanted = list(names) or pruning_packages()
    return [name for name in wanted if not _is_there(name)]


def pruning_packages() -> list[str]:
    """The packages of the extra, as they are imported; none where permllm is not installed."""
    try:
        lines = metadata.requires("permllm") or []
    except metadata.PackageNotFoundError:
        # Sources that are only on the path: what they miss, their imports say.
        return []
    needs = map(Requirement, lines)
    asked = (need for need in needs if need.marker and need.marker.evaluate({"extra": "prune"}))
    # Metadata says ruamel-yaml; apart from that, all of them are imported by their names.
    return sorted(need.name.replace("-", ".") for need in asked)


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        # The package that it stands in is missing, too.
        return False
