"""Tensors that are made anew whenever they are asked for, and kept by nobody.

What would be too much for the memory if all of it were there at once, such as the pruned weights
of a whole model, is made for one layer after the other, and again where the backward pass comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PIECE = 2**19
"""Numbers that :func:`in_pieces` takes at once, about."""


@attrs.frozen(eq=False)
class Remade(Mapping[str, Tensor]):
    """A mapping whose tensors are made anew whenever they are asked for.

    Attributes:
        names: of the tensors.
        make: gives the tensor of a name, from the sources.
        sources: what gradients of the tensors flow to, where that is to be held apart from what
            they are made of in turn (:func:`permllm.training.steps.add_gradients`).
    """

    names: Collection[str]
    make: Callable[..., Tensor]
    sources: tuple[Tensor, ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.make(name, *self.sources)

    def __contains__(self, name: Any) -> bool:
        # As it is inherited it would make the tensor.
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def in_pieces(function: Callable[[Tensor], Tensor], stack: Tensor) -> Tensor:
    """``function(stack)``, of which nothing inside is kept for the backward pass.

    Args:
        function: from ``[g, …]`` to a tensor of as many rows, each of which depends on its own.
        stack: ``[G, …]``.
    """
    rows = max(1, PIECE // max(1, stack[0].numel()))
    pieces = [checkpoint(function, piece, use_reentrant=False) for piece in stack.split(rows)]
    return torch.cat(pieces)
