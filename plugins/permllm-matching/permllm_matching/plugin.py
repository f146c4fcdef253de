"""The hooks of this package."""

from __future__ import annotations

import permllm
from permllm.components import PermutationLearner


@permllm.hookimpl
def permllm_permutations() -> list[type[PermutationLearner]]:
    """``matching``."""
    from permllm_matching.learner import Matching

    return [Matching]
