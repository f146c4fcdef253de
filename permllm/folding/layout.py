"""The layout of a model's permutations: what folds where, what is shared, what is gathered.

Found once for a decoder, and carried from the constraints that learners are held to, over the
check that permutations can be stored at all, to the exporters that store them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from torch import Tensor

from permllm.errors import UserError
from permllm.folding.constraints import RESIDUAL, Constraints
from permllm.folding.expert_inputs import expert_inputs
from permllm.folding.find import FoldFinder
from permllm.folding.fold import Fold, NoFold
from permllm.folding.plan import StoragePlan, check_storable, plan_storage
from permllm.folding.residual import Residual, find_residual
from permllm.models.decoder import Decoder


class Layout:
    """What is known of how a decoder's permutations can be stored; found when it is asked for.

    Args:
        decoder: the model. Folds are found with the weights that it has then.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._finder = FoldFinder(decoder)
        self._experts: dict[int, dict[str, tuple[str, ...]]] = {}

    def folds(self, layers: Iterable[int] | None = None) -> dict[str, Fold | NoFold]:
        """How the groups of some layers, or of all, fold; in order of execution."""
        chosen = range(len(self.decoder.layers)) if layers is None else layers
        return {name: fold for index in chosen for name, fold in self._finder.of(index).items()}

    @property
    def residual(self) -> Residual:
        """What follows the residual stream's order.

        Raises:
            UserError: a part of the model does not follow; the message names it.
        """
        if isinstance(self._stream, UserError):
            raise self._stream
        return self._stream

    @cached_property
    def _stream(self) -> Residual | UserError:
        try:
            return find_residual(self.decoder)
        except UserError as error:
            return error

    def constraints(self, *, foldable: bool, residual: str) -> Constraints:
        """What the options of a pipeline's ``layers`` mean for this model.

        Args:
            foldable, residual: as in :class:`permllm.pipeline.schema.Layers`.

        Raises:
            UserError: the residual stream of the model cannot be put in another order.
        """
        shared: dict[str, frozenset[str]] = {}
        kept: frozenset[str] = frozenset()
        if residual == "shared":
            shared[RESIDUAL] = frozenset(self.residual.groups)
        elif residual == "original":
            folds = self.folds().items()
            kept = frozenset(name for name, fold in folds if isinstance(fold, NoFold))
        else:
            experts = map(self.experts, range(len(self.decoder.layers)))
            shared = {where: frozenset(names) for one in experts for where, names in one.items()}
        used = self.folds() if foldable else {}
        return Constraints(
            {name: fold for name, fold in used.items() if isinstance(fold, Fold)}, shared, kept
        )

    def experts(self, index: int) -> dict[str, tuple[str, ...]]:
        """The groups of a layer's experts that read one tensor; see :func:`expert_inputs`."""
        if index not in self._experts:
            self._experts[index] = expert_inputs(self.decoder, index)
        return self._experts[index]

    def plan(self, permutations: Mapping[str, Tensor]) -> StoragePlan:
        """How the model is stored in some permutations; see :func:`plan_storage`."""
        return plan_storage(
            self.decoder, permutations, self.folds, lambda: self._stream, self.experts
        )

    def check_storable(self, groups: Iterable[str]) -> None:
        """Refuse groups whose permutations could not be stored; see :func:`check_storable`."""
        check_storable(self.decoder, groups, self.plan)
