"""Pruners: how a weight is cut to its pattern."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from permllm.hooks import hookimpl

if TYPE_CHECKING:
    from permllm.components import Pruner


@hookimpl
def permllm_pruners() -> Iterable[type[Pruner]]:
    """The built-in pruners."""
    from permllm.pruners.distil import Distil
    from permllm.pruners.learned_mask import LearnedMask
    from permllm.pruners.mask import Mask
    from permllm.pruners.sparsegpt import SparseGpt

    return [Mask, SparseGpt, LearnedMask, Distil]
