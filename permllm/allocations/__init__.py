"""Allocations: how much of each linear is kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from permllm.hooks import hookimpl

if TYPE_CHECKING:
    from permllm.components import Allocation


@hookimpl
def permllm_allocations() -> Iterable[type[Allocation]]:
    """The built-in allocations."""
    from permllm.allocations.owl import Owl
    from permllm.allocations.sensitivity import Sensitivity

    return [Owl, Sensitivity]
