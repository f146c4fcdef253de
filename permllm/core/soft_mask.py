"""A mask between 0 and 1 that keeps N of every M, for learning which.

Each of the M entries of a group has a logit ``z``, and is kept to the share

    y_i = σ((z_i - θ) / τ),    Σ_i y_i = N,

which is the mask of the greatest ``Σ_i z_i y_i + τ · entropy(y)`` whose shares add up to N. For
τ → 0 it is the hard mask of the N highest. θ, one number a group, depends on all its logits, so
that what one entry gains the others lose:

    ∂y_i / ∂z_j = (v_i [i = j] - v_i v_j / Σ v) / τ,    v = y (1 - y).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from permllm.core.patterns import Pattern
from permllm.core.permutations import invert

CHUNK = {"cpu": 2**18}
"""Logits that are worked on at once; what comes of them should fit the processor's cache."""

CHUNK_ELSEWHERE = 2**24
"""The same where starting an operation, and looking at what came of it, cost more than memory."""

MOST_ROUNDS = 8
"""Newton steps for θ, at the most; they begin half-way between the last entry that a hard mask
keeps and the first that it cuts."""


def soft_mask(logits: Tensor, pattern: Pattern, temperature: float) -> Tensor:
    """To what share each entry is kept; no gradient flows.

    Args:
        logits: ``[..., C_in]``, of which every M consecutive ones are a group.
        pattern: N:M.
        temperature: τ, in the logits' unit.

    Returns:
        ``[..., C_in]`` from 0 to 1; every M add up to N.

    Raises:
        ValueError: M does not divide C_in.
    """
    pattern.groups(logits.shape[-1])
    flat = logits.detach().reshape(-1, logits.shape[-1])
    parts = [_from_planes(_shares(flat[rows], pattern, temperature)) for rows in _chunks(flat)]
    return torch.cat(parts).view_as(logits)


def softly_masked(
    logits: Tensor,
    weight: Tensor,
    permutation: Tensor,
    pattern: Pattern,
    temperature: float,
) -> Tensor:
    """A weight under the soft mask of its logits; gradients flow to the logits.

    No more of the mask than some rows exists at once; the backward pass makes it again.

    Args:
        logits: ``[C_out, C_in]``, in permuted order.
        weight: ``[C_out, C_in]``, in original channel order; no gradient.
        permutation: ``LongTensor[C_in]``.
        pattern: N:M.
        temperature: τ.

    Returns:
        ``[C_out, C_in]`` in original channel order, in the weight's dtype.
    """
    product: Tensor = _SoftlyMasked.apply(logits, weight, permutation, pattern, temperature)
    return product


class _SoftlyMasked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        weight: Tensor,
        permutation: Tensor,
        pattern: Pattern,
        temperature: float,
    ) -> Tensor:
        ctx.save_for_backward(logits, weight, permutation)
        ctx.pattern, ctx.temperature = pattern, temperature
        masked, inverse = torch.empty_like(weight), invert(permutation)
        for rows in _chunks(logits):
            mask = _from_planes(_shares(logits[rows], pattern, temperature))
            torch.mul(weight[rows], mask.index_select(1, inverse).to(weight), out=masked[rows])
        return masked

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, weight, permutation = ctx.saved_tensors
        (given,) = gradients
        found = torch.empty_like(logits)
        for rows in _chunks(logits):
            shares = _shares(logits[rows], ctx.pattern, ctx.temperature)
            gains = (given[rows] * weight[rows]).to(logits.dtype).index_select(1, permutation)
            gains = _planes(gains, ctx.pattern.m)
            spread = shares.sub_(shares.square())
            mean = (spread * gains).sum(0) / spread.sum(0).clamp_min(1e-30)
            found[rows] = _from_planes(gains.sub_(mean).mul_(spread).div_(ctx.temperature))
        return found, None, None, None, None


def _shares(logits: Tensor, pattern: Pattern, temperature: float) -> Tensor:
    """The shares of some rows ``[r, C_in]``, in planes ``[M, r, C_in / M]``."""
    planes = _planes(logits, pattern.m)
    planes.sub_(_edge(planes, pattern.n)).div_(temperature)
    shares = planes.sigmoid()
    near = math.sqrt(torch.finfo(planes.dtype).eps)
    for _ in range(MOST_ROUNDS):
        kept = shares.sum(0)
        excess = kept - pattern.n
        if float(excess.abs().max()) < near:
            break
        slope = kept.sub_((shares * shares).sum(0)).clamp_min_(1e-30)
        # A step of more than 1 would be one along a tail.
        planes.sub_(excess.div_(slope).clamp_(-1, 1))
        torch.sigmoid(planes, out=shares)
    return shares


def _edge(planes: Tensor, n: int) -> Tensor:
    """Half-way between the N-th and the next highest of the planes, ``[r, C_in / M]``."""
    sorted_so_far = list(planes.unbind(0))
    for place in range(n + 1):
        for later in range(place + 1, len(sorted_so_far)):
            first, second = sorted_so_far[place], sorted_so_far[later]
            sorted_so_far[place] = torch.maximum(first, second)
            sorted_so_far[later] = torch.minimum(first, second)
    return (sorted_so_far[n - 1] + sorted_so_far[n]) / 2


def _planes(rows: Tensor, m: int) -> Tensor:
    """``[r, C_in]`` as ``[M, r, C_in / M]``: what is added up lies in different planes."""
    return torch.stack(rows.unflatten(1, (-1, m)).unbind(-1))


def _from_planes(planes: Tensor) -> Tensor:
    """``[M, r, C_in / M]`` as ``[r, C_in]``."""
    return planes.movedim(0, -1).flatten(1)


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Rows of ``[C_out, C_in]``, about :data:`CHUNK` logits at a time."""
    step = max(1, CHUNK.get(logits.device.type, CHUNK_ELSEWHERE) // logits.shape[1])
    for start in range(0, len(logits), step):
        yield slice(start, start + step)
