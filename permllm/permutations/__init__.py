"""Learners of channel orders: one file each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from permllm.hooks import hookimpl

if TYPE_CHECKING:
    from permllm.components import PermutationLearner


@hookimpl
def permllm_permutations() -> Iterable[type[PermutationLearner]]:
    """The built-in permutation learners."""
    from permllm.permutations.cp import Cp
    from permllm.permutations.greedy import Greedy
    from permllm.permutations.lcp import Lcp
    from permllm.permutations.none import NoPermutation

    return [NoPermutation, Cp, Greedy, Lcp]
