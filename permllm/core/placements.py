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


def rivals_of(
    scores: Tensor, gradient: Tensor, mask: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """For each place the entry that a newcomer has to beat: its score and its gradient.

    It is the weakest kept entry of the others in the group: the group's N-th highest, or
    the one below where the place's own entry is among the N highest. Where several have
    that very score, their gradients' mean is taken.

    Args:
        scores, gradient: ``[C_in, R]``, by place.
        mask: ``BoolTensor[C_in, R]``, what an N:M mask of the scores keeps.
        pattern: N:M.

    Returns:
        two tensors ``[C_in, R]``.
    """
    grouped, given, kept = (x.unflatten(0, (-1, pattern.m)) for x in (scores, gradient, mask))
    weakest = _at_extreme(grouped, given, kept, largest=False)
    strongest = _at_extreme(grouped, given, ~kept, largest=True)
    hurdle, lost = (
        torch.where(kept, below, nth).flatten(0, 1)
        for nth, below in zip(weakest, strongest, strict=True)
    )
    return hurdle, lost


def _at_extreme(
    grouped: Tensor, given: Tensor, among: Tensor, *, largest: bool
) -> tuple[Tensor, Tensor]:
    """The extreme score among some entries of each group, ``[G, 1, R]``, and its gradient."""
    barrier = -torch.inf if largest else torch.inf
    some = grouped.masked_fill(~among, barrier)
    extreme = some.amax(1, keepdim=True) if largest else some.amin(1, keepdim=True)
    equal = (some == extreme).to(given.dtype)
    return extreme, (given * equal).sum(1, keepdim=True) / equal.sum(1, keepdim=True)
