"""Old names of what has another now: they work for a release, with a warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

from permllm.errors import DeprecatedWarning


def warn_of_old_name(old: str, new: str) -> None:
    """Warn whoever called the caller that a name is deprecated."""
    warnings.warn(f"{old} is deprecated: use {new}", DeprecatedWarning, stacklevel=3)


def moved(old: str, new: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for the module ``old``, whose contents stand in ``new`` now."""

    def get(name: str) -> Any:
        try:
            value = getattr(importlib.import_module(new), name)
        except AttributeError:
            raise AttributeError(f"module '{old}' has no attribute '{name}'") from None
        if not name.startswith("__"):
            warn_of_old_name(f"{old}.{name}", f"{new}.{name}")
        return value

    return get
