"""The differentiable mask (MaskLLM, equations 5 to 8), a few rows of a weight at a time.

For the logits ``π`` of a group's candidates ``S`` a step takes

    z = (κ π + g) / τ,    y = softmax(z),    M = y S,    W' = W ⊙ M,

with Gumbel noise ``g``. Forward keeps ``W'`` alone; backward makes ``y`` again. Both go
through the weight in chunks of rows, so that beside logits, weight and ``W'`` there is
never more than one chunk's ``z``, ``y`` and ``M``.

Logits lie candidate by candidate, ``[C, C_out, G]``: a softmax over so few numbers is many
times faster if what it adds up lies in different planes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

CHUNK = 2**18
"""Logits that are worked on at once; they should fit the processor's cache."""

POOL = 2**22
"""Gumbel numbers that are drawn once and then read from random places."""


class GumbelPool:
    """Gumbel noise that costs one addition.

    A step of a small model needs hundreds of millions of Gumbel numbers, twice, and each
    costs two logarithms. So a pool of them is drawn once, and every plane of every step
    reads it from a place of its own, going round at its end. So the numbers of one step
    repeat, in other places; the paper draws each anew.

    Args:
        generator: where the numbers come from.
        device: where they are needed.
        size: how many.
    """

    def __init__(
        self, generator: torch.Generator, device: torch.device | str = "cpu", size: int = POOL
    ) -> None:
        uniform = torch.rand(size, generator=generator).clamp_(1e-12, 1 - 2**-24)
        self.numbers = uniform.log_().neg_().log_().neg_().to(device)
        self.generator = generator

    def starts(self, planes: int) -> list[int]:
        """New places to read from, one a plane."""
        drawn = torch.randint(len(self.numbers), (planes,), generator=self.generator)
        return [int(start) for start in drawn]

    def read(self, start: int, skip: int, count: int) -> Tensor:
        """``count`` numbers from the one that stands ``skip`` after ``start``."""
        first = (start + skip) % len(self.numbers)
        part = self.numbers[first : first + count]
        while len(part) < count:
            part = torch.cat([part, self.numbers[: count - len(part)]])
        return part


@attrs.frozen(eq=False)
class Sampling:
    """How a step makes a mask of logits.

    Attributes:
        scale: κ, times which the logits are taken.
        temperature: τ of the softmax.
        noise: times which Gumbel noise is taken; 0 for none.
        pool: the noise.
        starts: where each candidate reads the pool, so that forward and backward see the
            same.
        hard: forward takes the one candidate with the largest ``z`` (straight-through).
        penalty: λ of the term ``-λ ‖W'‖²`` whose gradient is added (equation 8).
    """

    scale: float
    temperature: float
    noise: float = 0.0
    pool: GumbelPool | None = None
    starts: list[int] = attrs.field(factory=list)
    hard: bool = False
    penalty: float = 0.0

    def scores(self, logits: Tensor, rows: slice) -> Tensor:
        """``z`` of some rows: ``[C, rows, G]``."""
        z = logits[:, rows] * (self.scale / self.temperature)
        if self.noise and self.pool is not None:
            strength, before = self.noise / self.temperature, rows.start * logits.shape[2]
            for plane, start in zip(z, self.starts, strict=True):
                flat = plane.view(-1)
                flat.add_(self.pool.read(start, before, len(flat)), alpha=strength)
        return z


def masked_weight(
    logits: Tensor, weight: Tensor, places: Tensor, table: Tensor, sampling: Sampling
) -> Tensor:
    """``W' = W ⊙ M``, differentiable with respect to the logits.

    Args:
        logits: ``[C, C_out, G]``.
        weight: ``[C_out, C_in]``, in original channel order; no gradient.
        places: ``[C_out, C_in]``, from :func:`~permllm_maskllm.candidates.ranked_places`.
        table: ``[C, M]`` in the logits' dtype, the candidates by rank.
        sampling: scale, temperature and noise.

    Returns:
        ``[C_out, C_in]`` in original channel order, in the weight's dtype.
    """
    return _MaskedWeight.apply(logits, weight, places, table, sampling)


def chosen_mask(choice: Tensor, places: Tensor, table: Tensor) -> Tensor:
    """The hard mask of chosen candidates, ``[C_out, C_in]`` in original channel order.

    Args:
        choice: ``[C_out, G]`` of whole numbers, each group's candidate.
        places, table: as in :func:`masked_weight`.

    Returns:
        zeros and ones in the table's dtype.
    """
    ranked = table.index_select(0, choice.reshape(-1).long()).view(len(choice), -1)
    return ranked.gather(1, places.long())


def first_largest(planes: Tensor) -> Tensor:
    """Which plane is the largest, the first where several are.

    Args:
        planes: ``[C, ...]``.

    Returns:
        ``ShortTensor[...]``. The same as ``argmax(0)``, which is slow for few planes.
    """
    best, index = planes[0].clone(), torch.zeros_like(planes[0], dtype=torch.int16)
    for number in range(1, len(planes)):
        index.masked_fill_(planes[number] > best, number)
        torch.maximum(best, planes[number], out=best)
    return index


class _MaskedWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, weight: Tensor, places: Tensor, table: Tensor, sampling: Sampling
    ) -> Tensor:
        masked = torch.empty_like(weight)
        for rows in chunks(logits):
            z = sampling.scores(logits, rows)
            if sampling.hard:
                mask = chosen_mask(first_largest(z), places[rows], table)
            else:
                mask = averaged_mask(softmax_(z), places[rows], table)
            torch.mul(weight[rows], mask, out=masked[rows])
        ctx.save_for_backward(logits, weight, places, table, masked)
        ctx.sampling = sampling
        return masked

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, weight, places, table, masked = ctx.saved_tensors
        sampling, (given,) = ctx.sampling, gradients
        found = torch.empty_like(logits)
        for rows in chunks(logits):
            change = given[rows].to(logits.dtype)
            if sampling.penalty:
                change = change.sub(masked[rows], alpha=2 * sampling.penalty)
            change = change * weight[rows]
            ranked = torch.empty_like(change).scatter_(1, places[rows].long(), change)
            planes = ranked.view(-1, table.shape[1]).T
            y = softmax_(sampling.scores(logits, rows))
            gain = (table @ planes).view_as(y)
            gain -= (gain * y).sum(0)
            torch.mul(gain.mul_(y), sampling.scale / sampling.temperature, out=found[:, rows])
        return found, None, None, None, None


def averaged_mask(y: Tensor, places: Tensor, table: Tensor) -> Tensor:
    """The average of the candidates (equation 7), ``[rows, C_in]`` in original order.

    Args:
        y: ``[C, rows, G]``.
        places, table: as in :func:`masked_weight`, of these rows.
    """
    ranked = (table.T @ y.flatten(1)).T.reshape(len(places), -1)
    return ranked.gather(1, places.long())


def softmax_(z: Tensor) -> Tensor:
    """Softmax over the first axis, in place."""
    z.sub_(z.amax(0)).exp_()
    return z.div_(z.sum(0))


def chunks(logits: Tensor) -> Iterator[slice]:
    """Rows of ``[C, C_out, G]``, about :data:`CHUNK` logits at a time."""
    candidates, rows, groups = logits.shape
    step = max(1, CHUNK // (candidates * groups))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
