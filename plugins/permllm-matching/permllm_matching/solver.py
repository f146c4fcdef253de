"""The differentiable bipartite matching solver (arXiv 2601.22980, equations 3 to 5).

Given the cost of putting each channel at each place, the best permutation ``P``
minimises ``⟨C, P⟩``. Over all doubly stochastic matrices and with an entropy term,

    min ⟨C, P⟩ + ε Σ P (log P - 1),

the minimum is ``P = diag(u) exp(-C/ε) diag(v)``: soft, unique and differentiable. It is
found by Sinkhorn's iterations on ``log u`` and ``log v``, and tends to the best
permutation as the temperature ε falls.

The iterations go on until ``P`` is doubly stochastic within a tolerance, and the
gradient is that of the *minimum*, by the implicit function theorem, rather than that of
the iterations: nothing but ``P`` is kept for it, however many there were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from permllm.core.assignment import assign_blocks


def match(cost: Tensor) -> Tensor:
    """The permutation of least cost (equation 3), by the Hungarian algorithm.

    Args:
        cost: ``[G, B, B]``, finite; ``cost[g, i, j]`` of channel ``i`` of block ``g`` at
            place ``j``. No gradient.

    Returns:
        ``LongTensor[G, B]``: which channel each place takes.
    """
    return assign_blocks(-cost.detach()).argsort(-1)


def soft_match(
    cost: Tensor,
    temperature: float,
    *,
    rounds: int,
    tolerance: float,
    prices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The soft permutation of least cost and entropy (equation 5).

    Args:
        cost: ``[G, B, B]``, finite, as in :func:`match`; gradients flow back to it.
        temperature: ε > 0.
        rounds: the most iterations, forward and backward each.
        tolerance: iterations end once every row sums to 1 within this.
        prices: where to begin: what an earlier call for similar costs returned.

    Returns:
        ``[G, B, B]``, non-negative, whose columns sum to 1 and whose rows do so within the
        tolerance, or as near as ``rounds`` allow; and the prices of the places,
        ``[G, 1, B]`` in units of cost, without gradient.
    """
    if prices is None:
        prices = torch.zeros_like(cost[:, :1])
    plan: Tensor
    plan, prices = _SoftMatch.apply(cost, temperature, rounds, tolerance, prices)
    return plan, prices


class _SoftMatch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, temperature: float, rounds: int, tolerance: float, prices: Tensor
    ) -> tuple[Tensor, Tensor]:
        fit = cost / -temperature
        columns = prices / temperature
        rows = -_log_sums(fit + columns, -1)
        for _ in range(rounds):
            columns = -_log_sums(fit + rows, -2)
            before, rows = rows, -_log_sums(fit + columns, -1)
            # The rows sum to exp(before - rows) under the potentials `before` and `columns`.
            if float((before - rows).expm1().abs().max()) <= tolerance:
                break
        plan = (fit + before + columns).exp_()
        # Rounding of large potentials is seen in the sums.
        plan /= plan.sum(-2, keepdim=True)
        ctx.save_for_backward(plan)
        ctx.settings = temperature, rounds, tolerance
        prices = columns * temperature
        ctx.mark_non_differentiable(prices)
        return plan, prices

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (plan,) = ctx.saved_tensors
        temperature, rounds, tolerance = ctx.settings
        tangent = plan * _without_sums(plan, gradients[0], rounds, tolerance)
        return tangent.div_(-temperature), None, None, None, None


def _log_sums(x: Tensor, dim: int) -> Tensor:
    return x.logsumexp(dim, keepdim=True)


def _without_sums(plan: Tensor, gradient: Tensor, rounds: int, tolerance: float) -> Tensor:
    """The gradient less what would change the sums of rows and columns, weighted by the plan.

    That is ``Γ - a ⊕ b`` with the vectors a and b for which every row and every column of
    ``P ⊙ (Γ - a ⊕ b)`` sums to zero. They are found by solving for one and the other in
    turn, which converges as Sinkhorn's iterations do.
    """
    weighted = plan * gradient
    row_sums, column_sums = plan.sum(-1, keepdim=True), plan.sum(-2, keepdim=True)
    row_means = weighted.sum(-1, keepdim=True) / row_sums
    column_means = weighted.sum(-2, keepdim=True) / column_sums
    scale = float(gradient.abs().max())
    a = row_means
    for _ in range(rounds):
        b = column_means - (plan.mT @ a).mT / column_sums
        before, a = a, row_means - (plan @ b.mT) / row_sums
        if float((a - before).abs().max()) <= tolerance * scale:
            break
    return gradient - a - b
