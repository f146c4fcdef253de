"""Linear assignment: the permutation that fits a matrix of weights best.

A kernel solves it on the CPU (an augmenting-path method, ``O(B³)`` at worst), with a thread for
each block. On CUDA ``torch-linear-assignment`` solves all blocks at once where it is installed: it
gives every problem one thread, so that a large one alone is for the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from permllm.core.assignment_kernel import assign_on_cpu

_PRICED_FROM = 64
"""The size from which prices cost less than they save."""


def assign_blocks(weights: Tensor) -> Tensor:
    """The columns that maximise the sum of the weights, one for each row of each block.

    Args:
        weights: ``[G, B, B]``, finite, of any floating-point dtype; no gradient.

    Returns:
        ``LongTensor[G, B]`` on the weights' device, a permutation per block: row ``i``
        of block ``g`` takes column ``result[g, i]``.

    Raises:
        ValueError: the weights are not finite.
    """
    weights = weights.detach()
    if not torch.isfinite(weights).all():
        raise ValueError("assignment needs finite weights")
    # If each row's best column is free, nothing can beat taking it.
    best = weights.argmax(-1)
    taken = torch.zeros_like(best).scatter_add_(-1, best, torch.ones_like(best))
    contested = (taken != 1).any(-1).nonzero().squeeze(-1)
    if len(contested):
        best[contested] = _solve(weights[contested])
    return best


def assign(weights: Tensor) -> Tensor:
    """The columns that maximise the sum of one matrix; fast where the diagonal nearly does.

    Args:
        weights: ``[B, B]``, finite; no gradient.

    Returns:
        ``LongTensor[B]``, as in :func:`assign_blocks`.
    """
    exact = weights.detach().double()
    if len(exact) >= _PRICED_FROM:
        exact = exact - _prices(exact)
    return _solve_on_cpu(exact.unsqueeze(0)).squeeze(0)


def _prices(weights: Tensor) -> Tensor:
    """A price per column at which most rows like their own column, on the diagonal, best.

    They are approximate dual variables of the problem, from a few rounds of relaxing
    ``price[c] >= price[r] + weights[r, c] - weights[r, r]``. Prices leave the best
    assignment as it is, but the search, whose duals start at zero, then ends up to
    five times sooner.
    """
    envy = weights - weights.diagonal().unsqueeze(1)
    prices = torch.zeros_like(weights[0])
    for _ in range(5):
        prices = (envy + prices.unsqueeze(1)).amax(0)
    return prices


def _solve(weights: Tensor) -> Tensor:
    if not weights.is_cuda:
        return _solve_on_cpu(weights)
    try:
        from torch_linear_assignment import batch_linear_assignment
    except ImportError:
        # Not installed, or for another PyTorch.
        return _solve_on_cpu(weights)
    places: Tensor = batch_linear_assignment(-weights.float())
    return places.long()


def _solve_on_cpu(weights: Tensor) -> Tensor:
    # Narrower ones than the kernel takes lose nothing in float32, which float64 need not be.
    known = weights.dtype in (torch.float32, torch.float64)
    blocks = (weights if known else weights.float()).cpu().contiguous()
    return torch.from_numpy(assign_on_cpu(blocks.numpy())).to(weights.device)
