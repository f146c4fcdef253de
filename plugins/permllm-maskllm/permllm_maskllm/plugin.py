"""The hook through which permllm finds MaskLLM."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import permllm

if TYPE_CHECKING:
    from permllm.components import Pruner


@permllm.hookimpl
def permllm_pruners() -> Iterable[type[Pruner]]:
    """The pruner ``maskllm``."""
    from permllm_maskllm.pruner import MaskLlm

    return [MaskLlm]
