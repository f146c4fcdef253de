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

from permllm.core.patterns import Pattern


def placement_gradient(scores: Tensor, gradient: Tensor, hurdle: Tensor, lost: Tensor) -> Tensor:
    """The gradient ``G[g, i, j]`` of the loss if channel ``i`` of a block were at place ``j``.

    Args:
        scores: ``[G, B, R]``, of each channel of each block, in R rows of the weight.
        gradient: ``[G, B, R]``, of the loss with respect to the mask.
        hurdle, lost: ``[G, B, R]``, from :func:`rivals_of`.

    Returns:
        ``[G, B, B]`` in float32 or better; costs ``G · B² · R``.
    """
    blocks, size, _ = scores.shape
    wide = torch.promote_types(scores.dtype, torch.float32)
    scores, gradient, hurdle, lost = (x.to(wide) for x in (scores, gradient, hurdle, lost))
    result = scores.new_empty(blocks, size, size)
    if scores.device.type == "cpu":
        # Imported late: numba takes a moment, and a machine with a GPU has no use for it.
        from permllm.core.placement_kernel import placement_gradient_on_cpu

        placement_gradient_on_cpu(
            scores.contiguous().numpy(),
            gradient.contiguous().numpy(),
            hurdle.contiguous().numpy(),
            lost.contiguous().numpy(),
            result.numpy(),
        )
        return result
    for channel in range(size):
        enters = scores[:, channel, None] > hurdle
        gain = gradient[:, channel, None] - lost
        result[:, channel] = torch.where(enters, gain, 0).sum(-1)
    return result


def rivals_of(scores: Tensor, gradient: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """For each place the entry that a newcomer has to beat: its score and its gradient.

    It is the entry with the N-th highest score of the others in the group: the group's
    N-th highest, or the one below where the place's own entry is among the N highest.

    Args:
        scores, gradient: ``[C_in, R]``, by place.
        pattern: N:M with M dividing C_in.

    Returns:
        two tensors ``[C_in, R]``, in float32 or better.
    """
    wide = torch.promote_types(scores.dtype, torch.float32)
    scores, gradient = scores.to(wide), gradient.to(wide)
    if scores.device.type != "cpu":
        return rivals_by_operations(scores, gradient, pattern)
    from permllm.core.placement_kernel import rivals_on_cpu

    hurdle, lost = torch.empty(scores.shape, dtype=wide), torch.empty(scores.shape, dtype=wide)
    rivals_on_cpu(
        scores.contiguous().numpy(),
        gradient.contiguous().numpy(),
        pattern.n,
        pattern.m,
        hurdle.numpy(),
        lost.numpy(),
    )
    return hurdle, lost


def rivals_by_operations(
    scores: Tensor, gradient: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """:func:`rivals_of` in tensor operations, for devices that Numba does not know."""
    grouped, given = (x.unflatten(0, (-1, pattern.m)) for x in (scores, gradient))
    highest, places = grouped.topk(pattern.n + 1, 1)
    theirs = given.gather(1, places)
    among = grouped >= highest[:, -2, None]
    hurdle = torch.where(among, highest[:, -1, None], highest[:, -2, None])
    lost = torch.where(among, theirs[:, -1, None], theirs[:, -2, None])
    return hurdle.flatten(0, 1), lost.flatten(0, 1)
