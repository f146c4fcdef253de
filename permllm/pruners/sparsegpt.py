"""SparseGPT: cuts column by column and lets the remaining columns make up for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import attrs
import torch
from torch import Tensor

from permllm.components import Pruner
from permllm.core.compensation import inverse_factor, settle_block
from permllm.core.patterns import Pattern, nm_mask, nm_mask_by_rows
from permllm.core.statistics import GRAM, Statistic
from permllm.option import option

if TYPE_CHECKING:
    from permllm.contexts.cost import ComponentCost, Workload

FACTOR_OPERATIONS, COLUMN_OPERATIONS = 5, 80
"""For estimates, with what memory rather than the processor limits: operations of a factor,
times ``C_in³``; and of the updates in a block, times the block's columns and the weight's size."""

MATRICES = 6
"""As large as the Hessian, which there are at once while its factor is made."""


@attrs.frozen
class SparseGpt(Pruner):
    """Cuts column by column and updates the columns after it (arXiv 2301.00774, alg. 1).

    The Hessian is ``H = X Xᵀ + λI``. With ``U`` the upper Cholesky factor of its inverse,
    pruning the weights of column ``j`` costs ``W_ij² / U_jj²`` and changes every later
    column ``k`` by ``-W_ij · U_jk / U_jj``. Columns come in permuted order, so that the
    method goes with every permutation learner.
    """

    name: ClassVar[str] = "sparsegpt"
    needs: ClassVar[tuple[Statistic, ...]] = (GRAM,)
    sequential: ClassVar[bool] = True

    block_size: int = option(
        128,
        help="columns per lazy update of the others; rounded down to a multiple of M",
        minimum=1,
    )
    dampening: float = option(
        0.01, help="λ, relative to the mean of the Hessian's diagonal", minimum=0, maximum=1e6
    )
    select: str = option(
        "obs",
        help="what is cut: obs, SparseGPT's own W²/[H⁻¹]² of the updated weights; "
        "scores, the metric's lowest",
        choices=("obs", "scores"),
    )

    def cost(self, workload: Workload) -> ComponentCost:
        """Of the Hessians' factors and the updates that they give."""
        from permllm.contexts.cost import ComponentCost

        operations = sum(
            FACTOR_OPERATIONS * c_in**3
            + 2 * c_out * c_in**2
            + COLUMN_OPERATIONS * self.block_size * c_out * c_in
            for c_out, c_in in workload.linears
        )
        widest = max((c_in for _, c_in in workload.linears), default=0)
        own = ComponentCost(operations=float(operations), bytes=MATRICES * 4 * widest**2)
        return own + super().cost(workload)

    def prune(
        self, weight: Tensor, scores: Tensor, pattern: Pattern, statistics: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The updated weight and the mask, both ``[C_out, C_in]``.

        Computes in float32, or in float64 if the weight is. Weights of channels that
        never fire are set to zero.

        Raises:
            RunFailed: the Hessian is not finite, or has no Cholesky factor.
        """
        wide = torch.promote_types(weight.dtype, torch.float32)
        gram = statistics[GRAM.name].to(weight.device, wide)
        # Channel-major, so that a column of the weight is a row in memory.
        columns = weight.detach().to(wide).T.clone(memory_format=torch.contiguous_format)
        columns[gram.diagonal() == 0] = 0
        factor = inverse_factor(gram, self.dampening, self.name)
        given = nm_mask(scores, pattern).T.contiguous() if self.select == "scores" else None
        mask = torch.empty_like(columns, dtype=torch.bool)

        def pruned(j: int) -> Tensor:
            if j % pattern.m == 0:
                group = slice(j, j + pattern.m)
                if given is None:
                    saliency = (columns[group] / factor.diagonal()[group, None]).square()
                    mask[group] = nm_mask_by_rows(saliency, pattern)
                else:
                    mask[group] = given[group]
            return columns[j].masked_fill(~mask[j], 0)

        step = max(1, self.block_size // pattern.m) * pattern.m
        for start in range(0, len(columns), step):
            block = slice(start, min(start + step, len(columns)))
            settle_block(columns, factor, block, pruned)
        return columns.T.to(weight.dtype).contiguous(), mask.T.contiguous()
