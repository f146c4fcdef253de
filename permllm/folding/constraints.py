"""What permutations the groups of a model may get."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from permllm.folding.fold import Fold

RESIDUAL = "residual stream"
"""What groups share that read the residual stream, if they are to share a permutation."""


@attrs.frozen(eq=False)
class Constraints:
    """What permutations the groups of a model may get.

    Attributes:
        folds: by group how its permutations fold, of those that have to.
        shared: groups that get one permutation, by what they share: the whole residual stream,
            or the module of all experts of a layer.
        kept: groups that keep the original order.
    """

    folds: Mapping[str, Fold] = attrs.field(factory=dict)
    shared: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    kept: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.folds or self.shared or self.kept)

    def order_of(self, group: str) -> str:
        """Whose permutation a group gets: its own, or that of what it shares one with others by."""
        return next((what for what, groups in self.shared.items() if group in groups), group)

    def leaves_free(self, group: str) -> bool:
        """Whether a group may get any permutation."""
        shares = any(group in groups for groups in self.shared.values())
        return not (group in self.folds or shares or group in self.kept)
