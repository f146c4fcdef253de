"""Permutations of input channels.

A permutation is a ``LongTensor[C_in]`` that holds each of ``0 … C_in-1`` once:
place ``i`` of the new order takes channel ``permutation[i]``. The permuted weight is
``W[:, permutation]`` and the input that goes with it ``x[..., permutation]``; their product is the
same as before.
"""

from __future__ import annotations

import torch
from torch import Tensor


def identity(channels: int) -> Tensor:
    """``LongTensor[channels]``: the order that changes nothing."""
    return torch.arange(channels)


def invert(permutation: Tensor) -> Tensor:
    """The order that undoes ``permutation``: ``invert(permutation)[permutation] == arange``.

    Args:
        permutation: ``LongTensor[C_in]``, or ``[..., C_in]`` for several.
    """
    places = torch.arange(permutation.shape[-1], device=permutation.device).expand_as(permutation)
    return torch.empty_like(permutation).scatter_(-1, permutation, places)


def is_permutation(permutation: Tensor, channels: int | None = None) -> bool:
    """Whether ``permutation`` is a vector of integers that holds each of ``0 … C_in-1`` once.

    Args:
        permutation: any tensor.
        channels: how many channels it must have; None for any number.
    """
    if permutation.dim() != 1 or permutation.dtype not in (torch.int64, torch.int32):
        return False
    if channels is not None and len(permutation) != channels:
        return False
    return bool(
        torch.equal(
            permutation.sort().values.long(),
            torch.arange(len(permutation), device=permutation.device),
        )
    )


def block_permutation(local: Tensor) -> Tensor:
    """The permutation of all channels that permutes them within blocks.

    Args:
        local: ``LongTensor[G, B]``, a permutation of ``0 … B-1`` for each block.

    Returns:
        ``LongTensor[G * B]``.
    """
    blocks, size = local.shape
    firsts = torch.arange(blocks, device=local.device).unsqueeze(1) * size
    return (local + firsts).reshape(-1)


def blocks_in_order(blocks: Tensor, local: Tensor) -> Tensor:
    """The channels of every block at the places that they go to: ``blocks[g, local[g]]``.

    Args:
        blocks: ``[G, B, R]``.
        local: ``LongTensor[G, B]``, a permutation of ``0 … B-1`` for each block.
    """
    return blocks.flatten(0, 1).index_select(0, block_permutation(local)).view_as(blocks)


def block_sizes(channels: int, block: int, m: int) -> list[int]:
    """The sizes of the blocks that ``channels`` are cut into, in order.

    All blocks have ``block`` channels, rounded down to a multiple of ``m`` (at least
    ``m``, at most ``channels``); what is left over is a smaller last block.

    >>> block_sizes(160, 64, 4)
    [64, 64, 32]

    Raises:
        ValueError: ``m`` does not divide ``channels``.
    """
    if channels % m:
        raise ValueError(f"{channels} channels cannot be cut into groups of {m}")
    size = max(block // m, 1) * m
    full, rest = divmod(channels, size)
    return [size] * full + ([rest] if rest else [])
