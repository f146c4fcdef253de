"""SparseGPT: cuts column by column and lets the remaining columns make up for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar

import attrs
import torch
from torch import Tensor

from permllm.components import Pruner
from permllm.core.patterns import Pattern, nm_mask, nm_mask_by_rows
from permllm.core.statistics import GRAM, Statistic
from permllm.core.threads import threads
from permllm.errors import RunFailed
from permllm.option import option

if TYPE_CHECKING:
    from permllm.contexts.cost import ComponentCost, Workload

ATTEMPTS = 4
"""How often the dampening is raised tenfold before a Hessian is given up."""

FACTOR_OPERATIONS, COLUMN_OPERATIONS = 5, 80
"""For estimates, with what memory rather than the processor limits: operations of a factor,
times ``C_in³``; and of the updates in a block, times the block's columns and the weight's size."""

MATRICES = 6
"""As large as the Hessian, which there are at once while its factor is made."""


SMALL = 1 << 19
"""Entries of a block whose columns one thread goes through on the CPU: at every one of them
threads would wait for each other, for long where other work runs on the same cores."""


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
        factor = inverse_factor(gram, self.dampening)
        given = nm_mask(scores, pattern).T.contiguous() if self.select == "scores" else None
        mask = torch.empty_like(columns, dtype=torch.bool)
        step = max(1, self.block_size // pattern.m) * pattern.m
        for start in range(0, len(columns), step):
            block = slice(start, min(start + step, len(columns)))
            small = columns.device.type == "cpu" and columns[block].numel() <= SMALL
            with threads(1) if small else nullcontext():
                errors = prune_block(
                    columns[block],
                    factor[block, block],
                    mask[block],
                    pattern,
                    None if given is None else given[block],
                )
            columns[block.stop :] -= factor[block, block.stop :].T @ errors
        return columns.T.to(weight.dtype).contiguous(), mask.T.contiguous()


def prune_block(
    columns: Tensor, factor: Tensor, mask: Tensor, pattern: Pattern, given: Tensor | None
) -> Tensor:
    """Prune a block of columns, in place.

    Args:
        columns: ``[block, C_out]``: the weights, which get their new values.
        factor: ``[block, block]``: the block's part of the upper factor ``U``.
        mask: ``BoolTensor[block, C_out]``, which is filled in.
        pattern: the N:M.
        given: the mask to take, in place of SparseGPT's choice.

    Returns:
        the errors ``W_ij / U_jj`` of what was pruned, else zero: ``[block, C_out]``.
    """
    diagonal = factor.diagonal()
    errors = torch.empty_like(columns)
    for j in range(len(columns)):
        if j % pattern.m == 0:
            group = slice(j, j + pattern.m)
            if given is None:
                saliency = (columns[group] / diagonal[group, None]).square()
                mask[group] = nm_mask_by_rows(saliency, pattern)
            else:
                mask[group] = given[group]
        errors[j] = (columns[j] / diagonal[j]).masked_fill(mask[j], 0)
        columns[j].masked_fill_(~mask[j], 0)
        columns[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
    return errors


def inverse_factor(gram: Tensor, dampening: float) -> Tensor:
    """The upper factor ``U`` with ``Uᵀ U = (G + λI)⁻¹``: ``[C_in, C_in]``.

    ``U`` is the inverse of the upper factor ``R`` in ``R Rᵀ = G + λI``, which is the
    lower Cholesky factor of the matrix with its channels reversed. This needs no inverse
    of ``G``. Channels that never fired get the mean of the others' diagonal.

    Args:
        gram: ``[C_in, C_in]``.
        dampening: ``λ``, relative to the mean of the diagonal; raised tenfold, a few
            times, while there is no factor.

    Raises:
        RunFailed: the matrix is not finite, or has no factor with any dampening.
    """
    if not bool(gram.isfinite().all()):
        raise RunFailed(
            "sparsegpt: the Hessian is not finite; the model's activations overflow, "
            "which dtype: float32 may cure"
        )
    diagonal = gram.diagonal()
    live = diagonal > 0
    mean = diagonal[live].mean() if bool(live.any()) else diagonal.new_ones(())
    # In units of the mean, so that float32 neither over- nor underflows.
    hessian = gram / mean
    hessian.diagonal().masked_fill_(~live, 1)
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for attempt in range(ATTEMPTS + 1):
        # Without dampening a first raise needs a size to start from.
        damp = dampening if attempt == 0 else max(dampening, 1e-6) * 10**attempt
        damped = (hessian + damp * identity).flip(0, 1)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper = lower.flip(0, 1)
            return torch.linalg.solve_triangular(upper, identity, upper=True) / mean.sqrt()
    raise RunFailed(
        f"sparsegpt: the Hessian has no Cholesky factor, even with a dampening of {damp:g}; "
        "more calibration tokens, or a larger dampening, may help"
    )
