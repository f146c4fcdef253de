"""Prune language models to N:M sparsity with learned channel permutations.

>>> import permllm
>>> results = permllm.run("pipelines/quickstart.yaml")        # doctest: +SKIP
>>> print(results["lcp"].figures["perplexity/python-docs"])   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from permllm.errors import PermllmError, RunFailed, UserError
from permllm.hooks import hookimpl
from permllm.version import __version__

if TYPE_CHECKING:
    from permllm.api import Pruned, prune, run
    from permllm.formats.loading import load
    from permllm.option import option

__all__ = [
    "PermllmError",
    "Pruned",
    "RunFailed",
    "UserError",
    "__version__",
    "hookimpl",
    "load",
    "option",
    "prune",
    "run",
]


@when_imported("transformers.quantizers.auto")
def _open_exports(_: Any) -> None:
    """Let ``from_pretrained`` open exports, once there is one."""
    from permllm.formats import quantiser  # noqa: F401


def __getattr__(name: str) -> Any:
    # Late, so that ``permllm --help`` does not wait for torch.
    if name in {"run", "prune", "Pruned"}:
        from permllm.extras import need_prune

        need_prune(f"permllm.{name}")
        from permllm import api

        return getattr(api, name)
    if name == "load":
        from permllm.formats.loading import load

        return load
    if name == "option":
        from permllm.option import option

        return option
    raise AttributeError(f"module 'permllm' has no attribute '{name}'")
