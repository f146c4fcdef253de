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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from permllm.core.fused import has_fused_kernels
from permllm.core.patterns import Pattern, as_words, kept, nm_mask_by_rows
from permllm.core.permutations import block_permutation, blocks_in_order, invert
from permllm.core.placements import mask_gradient, placement_gradient_of_weight
from permllm.core.precision import upcast


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
            computed in their dtype, or in float32 if that is wider.
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
    return _BlockMaskedWeight.apply(weight, scores, start, local, pattern, soft_mask, *soft)


def run_permutation(local: Sequence[Tensor]) -> Tensor:
    """``LongTensor[C_in]``: the global order of runs of blocks ``[G, B]``, one after another."""
    permutations, offset = [], 0
    for places in local:
        permutations.append(offset + block_permutation(places))
        offset += places.numel()
    return torch.cat(permutations)


class _BlockMaskedWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scores: Tensor,
        start: Tensor,
        local: Sequence[Tensor],
        pattern: Pattern,
        soft_mask: bool,
        *soft: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(weight, scores, start, *local)
        ctx.pattern, ctx.soft_mask = pattern, soft_mask
        return masked_in_order(weight, scores, run_permutation(local), start, pattern)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, scores, start, *local = ctx.saved_tensors
        of_run = _soft_gradient if ctx.soft_mask else placement_gradient_of_weight
        soft_grads, offset = [], 0
        for places in local:
            run = slice(offset, offset + places.numel())
            theirs = scores[run].view(*places.shape, -1)
            soft_grads.append(of_run(theirs, gradients[0], weight, start[run], places, ctx.pattern))
            offset = run.stop
        return None, None, None, None, None, None, *soft_grads


def masked_in_order(
    weight: Tensor, scores: Tensor, permutation: Tensor, start: Tensor, pattern: Pattern
) -> Tensor:
    """The weight where the N:M mask of the scores in some order keeps it, else zero.

    Args:
        weight, scores, start, pattern: as in :func:`block_masked_weight`.
        permutation: ``LongTensor[C_in]``, of the rows of ``scores``.

    Returns:
        ``[C_in, C_out]``, channels in their original order.
    """
    channels = start.index_select(0, permutation)
    if has_fused_kernels(weight.device):
        return _fused(weight.detach(), scores.detach(), permutation, channels, pattern)
    if weight.device.type != "cpu":
        return masked_by_operations(weight, scores, permutation, channels, pattern)
    # Imported late: numba takes a moment, and a machine with a GPU has no use for it.
    from permllm.core.kernels import masked_on_cpu

    words = as_words(weight.detach().contiguous())
    masked = torch.empty_like(words)
    masked_on_cpu(
        words.numpy(),
        upcast(scores.detach()).contiguous().numpy(),
        permutation.numpy(),
        channels.numpy(),
        pattern.n,
        pattern.m,
        masked.numpy(),
    )
    return masked.view(weight.dtype)


def masked_by_operations(
    weight: Tensor, scores: Tensor, permutation: Tensor, channels: Tensor, pattern: Pattern
) -> Tensor:
    """:func:`masked_in_order` in tensor operations, for devices without kernels of ours.

    Args:
        weight, scores, permutation, pattern: as there.
        channels: ``LongTensor[C_in]``, for each place the row of ``weight``.
    """
    mask = nm_mask_by_rows(scores.index_select(0, permutation), pattern)
    return kept(weight, mask.index_select(0, invert(channels)))


def _fused(
    weight: Tensor, scores: Tensor, permutation: Tensor, channels: Tensor, pattern: Pattern
) -> Tensor:
    # Imported late: Triton comes with PyTorch for CUDA alone.
    from permllm.core.triton_kernels import masked_on_cuda

    words = as_words(weight.contiguous())
    masked = torch.empty_like(words)
    masked_on_cuda(words, scores.contiguous(), permutation, channels, pattern.n, pattern.m, masked)
    return masked.view(weight.dtype)


def _soft_gradient(
    scores: Tensor,
    gradient: Tensor,
    weight: Tensor,
    channels: Tensor,
    local: Tensor,
    pattern: Pattern,
) -> Tensor:
    """The paper's: of blocks ``[G, B, R]``, through a softmax over each group of M."""
    scores = upcast(scores)
    mask_grad = mask_gradient(gradient, weight, channels, scores.dtype).view_as(scores)
    grouped, given = (
        blocks_in_order(x, local).unflatten(1, (-1, pattern.m)) for x in (scores, mask_grad)
    )
    soft_mask = grouped.softmax(2)
    product = soft_mask * given
    score_grad = torch.addcmul(product, soft_mask, product.sum(2, keepdim=True), value=-1)
    # P appears twice: where the mask is brought back and where the scores move.
    brought_back = torch.bmm(mask_grad, soft_mask.flatten(1, 2).transpose(1, 2))
    return brought_back.baddbmm_(scores, score_grad.flatten(1, 2).transpose(1, 2))


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
