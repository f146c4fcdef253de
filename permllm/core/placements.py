"""What a loss gains, to first order, from a channel in another place of an N:M mask.

PermLLM's straight-through estimator (arXiv 2510.10136, section 3.3) sends the mask's
gradient back through a softmax over each group of M. That softmax is wide: it moves
every entry of a group a little, while in truth a channel that comes to a place either
stays below what the mask keeps there and changes nothing, or takes the place of the
weakest kept entry. The *placement gradient* counts just that,

    G[i, j] = Σ_r [s(i, r) > h(j, r)] · (g(i, r) - g(k(j, r), r)),

with ``s`` the scores, ``g`` the gradient of the loss with respect to the mask, and
``k(j, r)`` the entry with the N-th highest score ``h(j, r)`` among the others of the
group of place ``j``, which channel ``i`` would push out in row ``r``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from permllm.core.fused import has_fused_kernels
from permllm.core.patterns import Pattern
from permllm.core.permutations import blocks_in_order
from permllm.core.precision import upcast


def placement_gradient(scores: Tensor, gradient: Tensor, local: Tensor, pattern: Pattern) -> Tensor:
    """The gradient ``G[g, i, j]`` of the loss if channel ``i`` of a block were at place ``j``.

    Args:
        scores: ``[G, B, R]``, of each channel of each block, in R rows of the weight.
        gradient: ``[G, B, R]``, of the loss with respect to the mask.
        local: ``LongTensor[G, B]``, the channel that stands at each place now.
        pattern: N:M with M dividing B.

    Returns:
        ``[G, B, B]`` in float32 or better; costs ``G · B² · R``.
    """
    if has_fused_kernels(scores.device):
        here = torch.arange(local.numel(), device=local.device)
        return _fused(scores, gradient.flatten(0, 1), None, here, local, pattern)
    scores, gradient = upcast(scores), upcast(gradient)
    if scores.device.type != "cpu":
        return placement_gradient_by_operations(scores, gradient, local, pattern)
    # Imported late: numba takes a moment, and a machine with a GPU has no use for it.
    from permllm.core.kernels import placement_gradient_on_cpu

    computed = placement_gradient_on_cpu(
        scores.contiguous().numpy(),
        gradient.contiguous().numpy(),
        local.contiguous().numpy(),
        pattern.n,
        pattern.m,
    )
    return torch.from_numpy(computed)


def placement_gradient_of_weight(
    scores: Tensor,
    gradient: Tensor,
    weight: Tensor,
    channels: Tensor,
    local: Tensor,
    pattern: Pattern,
) -> Tensor:
    """:func:`placement_gradient` from the gradient of the masked weight ``W'``.

    Args:
        scores, local, pattern: as in :func:`placement_gradient`.
        gradient: ``[C_in, R]``, of the loss with respect to ``W'``.
        weight: ``[C_in, R]``, not masked.
        channels: ``LongTensor[G · B]``, the row of ``gradient`` and ``weight`` of each channel of
            the blocks.
    """
    if has_fused_kernels(scores.device):
        return _fused(scores, gradient, weight, channels, local, pattern)
    of_mask = mask_gradient(gradient, weight, channels, upcast(scores).dtype)
    return placement_gradient(scores, of_mask.view_as(scores), local, pattern)


def mask_gradient(gradient: Tensor, weight: Tensor, channels: Tensor, dtype: torch.dtype) -> Tensor:
    """``∂L/∂W' ⊙ W``, the gradient of the loss with respect to the mask, of some channels.

    Args:
        gradient, weight, channels: as in :func:`placement_gradient_of_weight`.
        dtype: of the result.
    """
    return gradient.index_select(0, channels).to(dtype).mul_(weight.index_select(0, channels))


def _fused(
    scores: Tensor,
    gradient: Tensor,
    weight: Tensor | None,
    channels: Tensor,
    local: Tensor,
    pattern: Pattern,
) -> Tensor:
    # Imported late: Triton comes with PyTorch for CUDA alone.
    from permllm.core.triton_kernels import placement_gradient_on_cuda

    return placement_gradient_on_cuda(
        scores.contiguous(),
        gradient.contiguous(),
        None if weight is None else weight.contiguous(),
        channels,
        local.contiguous(),
        pattern.n,
        pattern.m,
    )


def placement_gradient_by_operations(
    scores: Tensor, gradient: Tensor, local: Tensor, pattern: Pattern
) -> Tensor:
    """:func:`placement_gradient` in tensor operations, for devices without kernels of ours."""
    threshold, lost = rivals_of(scores, gradient, local, pattern)
    result = scores.new_empty(*scores.shape[:2], scores.shape[1])
    for channel in range(scores.shape[1]):
        enters = scores[:, channel, None] > threshold
        gain = gradient[:, channel, None] - lost
        result[:, channel] = torch.where(enters, gain, 0).sum(-1)
    return result


def rivals_of(
    scores: Tensor, gradient: Tensor, local: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """For each place the entry that a newcomer has to beat: its score and its gradient.

    It is the entry with the N-th highest score of the others in the group: the group's
    N-th highest, or the one below where the place's own entry is among the N highest.

    Args:
        scores, gradient, local, pattern: as in :func:`placement_gradient`.

    Returns:
        two tensors ``[G, B, R]``, by place.
    """
    grouped, given = (
        blocks_in_order(x, local).unflatten(1, (-1, pattern.m)) for x in (scores, gradient)
    )
    highest, places = grouped.topk(pattern.n + 1, 2)
    theirs = given.gather(2, places)
    among = grouped >= highest[:, :, -2, None]
    threshold = torch.where(among, highest[:, :, -1, None], highest[:, :, -2, None])
    lost = torch.where(among, theirs[:, :, -1, None], theirs[:, :, -2, None])
    return threshold.flatten(1, 2), lost.flatten(1, 2)
