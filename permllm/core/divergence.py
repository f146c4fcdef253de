"""The Kullback-Leibler divergence of two models' next tokens, with its gradient on the way.

Logits of a step, tokens by vocabulary, are the largest tensors of a training. In PyTorch's
operations the loss would write and read about ten more of that size in float32. Here a few
rows at a time go through the cache, and only the gradient remains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_AT_ONCE = {"cpu": 1 << 20}
"""Logits of a part: what fits into a processor's cache."""

_AT_ONCE_ELSEWHERE = 1 << 26
"""The same where starting an operation costs more than memory."""


def mean_kl(logits: Tensor, target: Tensor) -> Tensor:
    """The mean over rows of ``KL(softmax(target) ‖ softmax(logits))``, in nats.

    Args:
        logits: ``[n, V]``; gradients flow back to these. They are rounded to the logits'
            dtype, as is the gradient; everything between is in float32 or better.
        target: ``[n, V]``; no gradient.

    Returns:
        a scalar, in float32 or better.
    """
    result: Tensor = _MeanKl.apply(logits, target.detach())
    return result


class _MeanKl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        rows, size = logits.shape
        at_once = max(1, _AT_ONCE.get(logits.device.type, _AT_ONCE_ELSEWHERE) // size)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = logits.new_zeros((), dtype=dtype)
        for first in range(0, rows, at_once):
            part = slice(first, first + at_once)
            ours = logits[part].to(dtype).log_softmax(-1)
            theirs = target[part].to(dtype).log_softmax(-1)
            likely = theirs.exp()
            total += theirs.sub_(ours).mul_(likely).sum()
            if gradient is not None:
                gradient[part] = ours.exp_().sub_(likely).div_(rows)
        ctx.save_for_backward(gradient)
        return total / rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        return (None if gradient is None else gradient * gradients[0].to(gradient.dtype)), None
