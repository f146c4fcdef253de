"""Changing a weight column by column, so that later columns make up for what earlier ones lose.

With ``H = X Xᵀ + λI`` of the inputs and ``U`` the upper Cholesky factor of its inverse, a
change of column ``j`` by ``-d`` costs the output least if every later column ``k`` changes by
``-d · U_jk / U_jj`` (optimal brain surgeon; arXiv 2301.00774 for cutting, 2210.17323 for
rounding).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from permllm.core.threads import threads
from permllm.errors import RunFailed

ATTEMPTS = 4
"""How often the dampening is raised tenfold before a Hessian is given up."""

SMALL = 1 << 19
"""Entries of a block whose columns one thread goes through on the CPU: at every one of them
threads would wait for each other, for long where other work runs on the same cores."""


def settle_block(
    columns: Tensor, factor: Tensor, block: slice, settled: Callable[[int], Tensor]
) -> None:
    """Give the columns of a block their final values, and change all columns after them.

    Args:
        columns: ``[C_in, C_out]``, a weight with its columns as rows in memory; changed in
            place. Columns before the block are settled already.
        factor: ``[C_in, C_in]``, the upper factor ``U``.
        block: which columns, both ends given.
        settled: gives the final value of column ``j``, ``[C_out]``, once all before it are
            settled and ``columns[j]`` holds what it has become by them. Of the columns after it
            those in the block are as up to date.
    """
    own, part = columns[block], factor[block, block]
    diagonal = part.diagonal()
    errors = torch.empty_like(own)
    small = columns.device.type == "cpu" and own.numel() <= SMALL
    with threads(1) if small else nullcontext():
        for i in range(len(own)):
            final = settled(block.start + i)
            errors[i] = (own[i] - final) / diagonal[i]
            own[i] = final
            own[i + 1 :].addr_(part[i, i + 1 :], errors[i], alpha=-1)
    columns[block.stop :] -= factor[block, block.stop :].T @ errors


def inverse_factor(gram: Tensor, dampening: float, whose: str) -> Tensor:
    """The upper factor ``U`` with ``Uᵀ U = (G + λI)⁻¹``: ``[C_in, C_in]``.

    ``U`` is the inverse of the upper factor ``R`` in ``R Rᵀ = G + λI``, which is the
    lower Cholesky factor of the matrix with its channels reversed. This needs no inverse
    of ``G``. Channels that never fired get the mean of the others' diagonal.

    Args:
        gram: ``[C_in, C_in]``.
        dampening: ``λ``, relative to the mean of the diagonal; raised tenfold, a few
            times, while there is no factor.
        whose: what wants it, for messages.

    Raises:
        RunFailed: the matrix is not finite, or has no factor with any dampening.
    """
    if not bool(gram.isfinite().all()):
        raise RunFailed(
            f"{whose}: the Hessian is not finite; the model's activations overflow, "
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
        f"{whose}: the Hessian has no Cholesky factor, even with a dampening of {damp:g}; "
        "more calibration tokens, or a larger dampening, may help"
    )
