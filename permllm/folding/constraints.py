"""What permutations the groups of a model may get."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from permllm.folding.fold import Fold


@attrs.frozen(eq=False)
class Constraints:
    """What permutations the groups of a model may get.

    Attributes:
        folds: by group how its permutations fold, of those that have to.
        shared: groups that get one permutation, which the whole residual stream takes.
        kept: groups that keep the original order.
    """

    folds: Mapping[str, Fold] = attrs.field(factory=dict)
    shared: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.folds or self.shared or self.kept)

    def leaves_free(self, group: str) -> bool:
        """Whether a group may get any permutation."""
        return not (group in self.folds or group in self.shared or group in self.kept)
