"""A learning step: the gradient of its sequences, at once or in parts, and whether it is a number.

The window's weights are made once for a step, however many parts it has, since making them may draw
random numbers. A part's backward pass ends at the weights, or at what they are made of where that
is done anew for every layer. What arrives there is added up and goes on to the parameters once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor

from permllm.core.remade import Remade
from permllm.exhaustion import asked_for, out_of_memory
from permllm.freed_memory import give_back_freed_memory
from permllm.world import World

R = TypeVar("R")

Loss = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""From weights by linear and the rows ``LongTensor[b]`` to a mean over these sequences."""


@attrs.define
class Parts:
    """How many sequences go through the window at once: as many as memory has room for.

    Attributes:
        warn: is told once that they have to be fewer than were wanted.
        most: what has been found to fit; None as long as nothing has failed.
    """

    warn: Callable[[str], None]
    most: int | None = None

    def fitting(self, sequences: int, work: Callable[[int], R]) -> R:
        """``work(size)`` with all ``sequences`` at once, or half of them, or a quarter, …

        Raises:
            Exception: what ``work`` raises other than for want of memory; and that, too, if it
                was given a single sequence.
        """
        size = min(sequences, self.most or sequences)
        asked = None
        while True:
            try:
                result = work(size)
                break
            except Exception as error:
                if size == 1 or not out_of_memory(error):
                    raise
                asked = asked_for(error) or asked
            # The error is gone, and with it the tensors of the frames that it held.
            give_back_freed_memory()
            size = (size + 1) // 2
        if size < sequences:
            self._remember(size, sequences, asked)
        return result

    def _remember(self, size: int, sequences: int, asked: str | None) -> None:
        if self.most is None:
            want = f" ({asked} were asked for)" if asked else ""
            self.warn(
                f"{sequences} sequences at once do not fit into memory{want}; a learning step adds "
                f"up the gradients of parts of {size}, which is the same step up to rounding"
            )
        self.most = size


def add_gradients(
    loss: Loss,
    weights: Mapping[str, Tensor],
    rows: Tensor,
    size: int,
    *,
    of: int | None = None,
    again: bool = False,
) -> Tensor:
    """Give the parameters under ``weights`` the gradient of ``loss(weights, rows)``.

    Args:
        loss: a mean over sequences that are equally long.
        weights: by linear; those without a gradient take part.
        rows: ``LongTensor[b]``.
        size: how many of them go through the window at once.
        of: how many sequences the mean is over, if others of the step go through it elsewhere.
        again: whether the same weights are to have another gradient.

    Returns:
        the loss, without a gradient.
    """
    # What is made anew is cut from what it is made of.
    sources = weights.sources if isinstance(weights, Remade) else tuple(weights.values())
    arrived: dict[int, Tensor] = {}
    apart = tuple(_cut(source, place, arrived) for place, source in enumerate(sources))
    cut: Mapping[str, Tensor] = dict(zip(weights, apart, strict=False))
    if isinstance(weights, Remade):
        cut = attrs.evolve(weights, sources=apart)
    total: Tensor | None = None
    of = of or len(rows)
    for part in rows.split(size):
        value = loss(cut, part)
        if len(part) < of:
            value = value * (len(part) / of)
        value.backward()
        total = value.detach() if total is None else total + value.detach()
    assert total is not None
    if arrived:
        torch.autograd.backward(
            [sources[place] for place in arrived], list(arrived.values()), retain_graph=again
        )
    return total


def give_gradients(
    loss: Loss,
    weights: Mapping[str, Tensor],
    rows: Tensor,
    optimiser: torch.optim.Optimizer,
    parts: Parts,
    world: World,
) -> Tensor:
    """Give the parameters of an optimiser the gradient of a step, shard by shard.

    Shards are added up where the parameters are: those of what is made of them, such as weights,
    would be much more to send.

    Args:
        loss, weights, rows: as in :func:`add_gradients`.
        optimiser: of what the weights are made of.
        parts: how many sequences at once memory has room for.
        world: the processes that make the step together.

    Returns:
        the loss, without a gradient.
    """
    shards = world.cut(len(rows))
    own = world.own(len(shards))

    def of_shard(shard: int) -> Tensor:
        part = rows[shards[shard].start : shards[shard].stop]

        def gradients(size: int) -> Tensor:
            optimiser.zero_grad(set_to_none=True)
            again = shard + 1 < own.stop
            return add_gradients(loss, weights, part, size, of=len(rows), again=again)

        return parts.fitting(len(part), gradients)

    if len(shards) == 1 and not world.many:
        return of_shard(0)
    parameters = list(parameters_of(optimiser))

    def share(shard: int) -> dict[str, Tensor]:
        value = of_shard(shard)
        found = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        return {"loss": value} | {str(place): one for place, one in enumerate(found)}

    total = world.summed(len(shards), share)
    for place, parameter in enumerate(parameters):
        parameter.grad = total[str(place)]
    return total["loss"]


def all_finite(loss: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Whether a loss and the gradients of all parameters are numbers."""
    largest = [
        torch.linalg.vector_norm(parameter.grad, math.inf).to(loss.device, torch.float32)
        for parameter in parameters
        if parameter.grad is not None and parameter.grad.numel()
    ]
    return bool(torch.stack([loss.float(), *largest]).isfinite().all())


def parameters_of(optimiser: torch.optim.Optimizer) -> Iterable[Tensor]:
    """Everything that an optimiser moves."""
    for settings in optimiser.param_groups:
        yield from settings["params"]


class _Cut(torch.autograd.Function):
    """Passes a tensor on, and keeps the gradient that comes back."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, keep: Callable[[Tensor], None]) -> Tensor:
        ctx.keep = keep
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        ctx.keep(gradients[0])
        return None, None


def _cut(source: Tensor, place: int, arrived: dict[int, Tensor]) -> Tensor:
    if not source.requires_grad:
        return source

    def keep(gradient: Tensor) -> None:
        arrived[place] = arrived[place] + gradient if place in arrived else gradient

    cut: Tensor = _Cut.apply(source.detach().requires_grad_(), keep)
    return cut
