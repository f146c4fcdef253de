"""No permutation: the baseline of every comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs

from permllm.components import PermutationLearner
from permllm.core.permutations import identity

if TYPE_CHECKING:
    from torch import Tensor

    from permllm.contexts.window import Window


@attrs.frozen
class NoPermutation(PermutationLearner):
    """Keeps the channels in their original order."""

    name: ClassVar[str] = "none"
    reorders: ClassVar[bool] = False
    only_scores: ClassVar[bool] = True

    def learn(self, window: Window) -> dict[str, Tensor]:
        """The identity for every group."""
        return {name: identity(group.channels) for name, group in window.groups.items()}
