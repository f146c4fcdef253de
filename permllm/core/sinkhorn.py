"""Sinkhorn normalisation: from logits to a (nearly) doubly stochastic matrix.

PermLLM (arXiv 2510.10136), section 3.1: ``exp(logits / τ)``, rows and columns divided
by their sums in turn. As τ falls, the result tends to the permutation matrix that
fits the logits best.
"""

from __future__ import annotations

from torch import Tensor


def sinkhorn(logits: Tensor, temperature: float, rounds: int) -> Tensor:
    """The soft permutation of each matrix of logits.

    Everything happens on logarithms, so that logits of any size give finite results.

    Args:
        logits: ``[..., B, B]``, floating point.
        temperature: τ > 0.
        rounds: how often rows and then columns are normalised; after the last,
            columns sum to 1 and rows nearly so.

    Returns:
        ``[..., B, B]``, non-negative, differentiable with respect to ``logits``.
    """
    log = logits / temperature
    for _ in range(rounds):
        log = log - log.logsumexp(-1, keepdim=True)
        log = log - log.logsumexp(-2, keepdim=True)
    return log.exp()
