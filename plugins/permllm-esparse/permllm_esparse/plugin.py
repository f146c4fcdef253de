"""The hooks through which permllm finds E-Sparse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import permllm

if TYPE_CHECKING:
    from permllm.components import Metric, PermutationLearner


@permllm.hookimpl
def permllm_metrics() -> Iterable[type[Metric]]:
    """The metric ``esparse``."""
    from permllm_esparse.metric import ESparse

    return [ESparse]


@permllm.hookimpl
def permllm_permutations() -> Iterable[type[PermutationLearner]]:
    """The permutation learner ``esparse-shuffle``."""
    from permllm_esparse.shuffle import ESparseShuffle

    return [ESparseShuffle]
