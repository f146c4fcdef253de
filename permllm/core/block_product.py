"""The differentiable block-permuted N:M product (PermLLM, section 3).

A weight ``W`` is masked by its scores ``S`` in permuted channel order,

    W' = W ⊙ (top-N of every M of (S P)) Pᵀ,

where ``P`` permutes the input channels within blocks. Forward takes ``P`` hard (the
assignment) and the mask hard (top-N). Backward is a straight-through estimator, of two
kinds: the soft mask (a softmax over each group of M) in place of the hard one, as in the
paper, or the placement gradient (:mod:`permllm.core.placements`).

Hard permutations are index gathers, and only the diagonal blocks of the gradient of
``P`` are ever computed, so both directions cost ``O(C_out · C_in · B)`` and no
``C_in × C_in`` matrix exists. Everything here is *channel-major*, ``[C_in, C_out]``:
moving a channel copies a row, and a group of M is M neighbouring rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from permllm.core.patterns import Pattern, kept, nm_mask_by_rows
from permllm.core.permutations import invert
from permllm.core.placements import placement_gradient, rivals_of


def block_masked_weight(
    weight: Tensor,
    scores: Tensor,
    soft: Sequence[Tensor],
    local: Sequence[Tensor],
    start: Tensor,
    pattern: Pattern,
    *,
    soft_mask: bool = True,
) -> Tensor:
    """The pruned weight ``W'``, differentiable with respect to the soft permutation.

    Args:
        weight: ``[C_in, C_out]``, channels in their original order; no gradient.
        scores: ``[C_in, C_out]``, channels in the order ``start``; no gradient. Gradients are
            computed in their dtype, which may be wider than the weight's.
        soft: runs of blocks ``[G, B, B]``, doubly stochastic; ``soft[g, i, j]`` is how
            much channel ``i`` of block ``g`` belongs at place ``j``. One run where B
            divides C_in; the sum of ``G · B`` over the runs is C_in.
        local: for each run ``LongTensor[G, B]``, the hard permutation of each block:
            channel ``local[g, j]`` of block ``g`` goes to place ``j``.
        start: ``LongTensor[C_in]``, the order that the blocks are cut from.
        pattern: N:M with M dividing every B.
        soft_mask: True for the paper's gradient, through a softmax over each group of M;
            False for the placement gradient.

    Returns:
        ``[C_in, C_out]``, channels in their original order: ``weight`` where the mask
        keeps it, else zero.
    """
    order = block_order(local)
    return _BlockMaskedWeight.apply(weight, scores, order, start, pattern, soft_mask, *soft)


def block_order(local: Sequence[Tensor]) -> Tensor:
    """``LongTensor[C_in]``: the global order of runs of blocks ``[G, B]``, one after another."""
    orders, offset = [], 0
    for places in local:
        blocks, size = places.shape
        first = offset + torch.arange(blocks, device=places.device).unsqueeze(1) * size
        orders.append((places + first).reshape(-1))
        offset += blocks * size
    return torch.cat(orders)


class _BlockMaskedWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scores: Tensor,
        order: Tensor,
        start: Tensor,
        pattern: Pattern,
        soft_mask: bool,
        *soft: Tensor,
    ) -> Tensor:
        mask = nm_mask_by_rows(scores.index_select(0, order), pattern)
        mask = mask.index_select(0, invert(start.index_select(0, order)))
        ctx.save_for_backward(weight, scores, order, start)
        ctx.pattern, ctx.blocks = pattern, [part.shape[:2] for part in soft]
        ctx.soft_mask = soft_mask
        return kept(weight, mask)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, scores, order, start = ctx.saved_tensors
        # Gradient of the mask in the order `start`, and at the hard places.
        # The gradient of a linear's weight lies row by row, and weight and scores do not.
        wide = gradients[0].contiguous().to(scores.dtype)
        mask_grad = (wide * weight).index_select(0, start)
        placed, placed_grad = scores.index_select(0, order), mask_grad.index_select(0, order)
        of_blocks: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
        if ctx.soft_mask:
            of_blocks = _soft_moves
            soft_mask = _group_softmax(placed, ctx.pattern)
            score_grad = _group_softmax_backward(soft_mask, placed_grad, ctx.pattern)
            operands = (scores, mask_grad, soft_mask, score_grad)
        else:
            of_blocks = placement_gradient
            hurdle, lost = rivals_of(placed, placed_grad, ctx.pattern)
            operands = (scores, mask_grad, hurdle, lost)
        soft_grads, offset = [], 0
        for blocks, size in ctx.blocks:
            rows = slice(offset, offset + blocks * size)
            soft_grads.append(of_blocks(*(x[rows].view(blocks, size, -1) for x in operands)))
            offset = rows.stop
        return None, None, None, None, None, None, *soft_grads


def _soft_moves(scores: Tensor, mask_grad: Tensor, soft_mask: Tensor, score_grad: Tensor) -> Tensor:
    # P appears twice: where the mask is brought back and where the scores move.
    brought_back = torch.bmm(mask_grad, soft_mask.transpose(1, 2))
    return brought_back.baddbmm_(scores, score_grad.transpose(1, 2))


def _group_softmax(scores: Tensor, pattern: Pattern) -> Tensor:
    """Softmax over each M neighbouring rows of ``[C_in, C_out]``: the soft mask."""
    grouped = scores.view(-1, pattern.m, scores.shape[1])
    return grouped.softmax(1).view_as(scores)


def _group_softmax_backward(soft_mask: Tensor, gradient: Tensor, pattern: Pattern) -> Tensor:
    """Gradient of the scores, given the gradient of :func:`_group_softmax`'s result."""
    product = (soft_mask * gradient).view(-1, pattern.m, soft_mask.shape[1])
    total = product.sum(1, keepdim=True)
    grouped = soft_mask.view_as(product)
    return torch.addcmul(product, grouped, total, value=-1).view_as(soft_mask)


def dense_masked_weight(
    weight: Tensor, scores: Tensor, permutation: Tensor, pattern: Pattern
) -> Tensor:
    """The same product with a whole ``C_in × C_in`` matrix: the formulation of the paper.

    It costs ``O(C_out · C_in²)`` and is here to be compared with: tests hold
    :func:`block_masked_weight` to its values and gradients, and a benchmark to its time.

    Args:
        weight, scores: ``[C_out, C_in]``, channels in their original order.
        permutation: ``[C_in, C_in]``, hard in its value and soft in its gradient:
            ``(hard - soft).detach() + soft``.
        pattern: N:M.

    Returns:
        ``[C_out, C_in]``.
    """
    placed = scores @ permutation
    grouped = placed.view(placed.shape[0], -1, pattern.m)
    hard = nm_mask_by_rows(placed.detach().T.contiguous(), pattern).T.to(placed.dtype)
    hard_mask = hard @ permutation.T
    soft_mask = grouped.softmax(-1).view_as(placed) @ permutation.T
    return weight * ((hard_mask - soft_mask).detach() + soft_mask)
