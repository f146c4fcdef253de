"""Permutation groups cut into blocks, for learners whose blocks have parameters of their own.

A group's channels are cut, in the order that the learner starts from, into blocks of
equal size (the last may be smaller). Whatever is learned per block, a ``[B, B]`` matrix,
is *stacked* over all groups of a window by its size B, so that one batched operation
serves the whole window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from permllm.core.assignment import assign_blocks
from permllm.core.block_product import block_masked_weight, block_order
from permllm.core.patterns import Pattern
from permllm.core.permutations import block_sizes

if TYPE_CHECKING:
    from permllm.contexts.window import Window


@attrs.frozen(eq=False)
class BlockedGroup:
    """A permutation group, cut into blocks in its start order.

    Attributes:
        name: the group's name.
        pattern: its N:M.
        start: ``LongTensor[C_in]``.
        runs: ``(B, G)`` of each run of G equally large blocks: one run, or two where
            the block does not divide the channels.
        weights: per linear, ``[C_in, C_out]`` in original order.
        scores: per linear, ``[C_in, C_out]`` in start order.
    """

    name: str
    pattern: Pattern
    start: Tensor
    runs: tuple[tuple[int, int], ...]
    weights: dict[str, Tensor]
    scores: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        window: Window,
        name: str,
        start: Tensor,
        *,
        block: int,
        normalise_scores: bool,
        dtype: torch.dtype | None = None,
    ) -> BlockedGroup:
        """The group ``name`` of a window, on the window's device.

        Args:
            window: it gives the weights and the scores.
            name: the group.
            start: ``LongTensor[C_in]``, the order that the blocks are cut from.
            block: channels per block, rounded down to a multiple of M.
            normalise_scores: divide each linear's scores by their mean.
            dtype: of the weights, where products are done in another than the model's; to
                round once what every step would round takes half the memory.
        """
        group, pattern = window.groups[name], window.pattern(name)
        start = start.to(window.device)
        weights, scores = {}, {}
        for linear in group.linears:
            weight, score = window.weight(linear), window.scores(linear)
            weights[linear] = weight.to(dtype or weight.dtype).T.contiguous()
            score = score / score.mean().clamp_min(1e-30) if normalise_scores else score
            score = score.to(weight.dtype)
            scores[linear] = score.T.index_select(0, start).contiguous()
        sizes = Counter(block_sizes(group.channels, block, pattern.m))
        return cls(name, pattern, start, tuple(sizes.items()), weights, scores)

    def masked_weights(
        self, soft: list[Tensor], local: list[Tensor], *, soft_mask: bool
    ) -> dict[str, Tensor]:
        """The pruned weights ``[C_out, C_in]`` under each run's soft and hard permutation."""
        return {
            linear: block_masked_weight(
                weight,
                self.scores[linear],
                soft,
                local,
                self.start,
                self.pattern,
                soft_mask=soft_mask,
            ).T
            for linear, weight in self.weights.items()
        }

    def order(self, local: list[Tensor]) -> Tensor:
        """``LongTensor[C_in]``: the group's order under each run's hard permutation."""
        return self.start.index_select(0, block_order(local))


def block_counts(groups: Sequence[BlockedGroup]) -> Counter[int]:
    """How many blocks of each size all groups have together."""
    counts: Counter[int] = Counter()
    for group in groups:
        counts.update(dict(group.runs))
    return counts


def unstacked(groups: Sequence[BlockedGroup], stacked: Mapping[int, Tensor]) -> list[list[Tensor]]:
    """The runs of each group, cut from what is stacked over the groups per block size."""
    counts: dict[int, list[int]] = {size: [] for size in stacked}
    for group in groups:
        for size, count in group.runs:
            counts[size].append(count)
    runs = {size: iter(x.split(counts[size])) for size, x in stacked.items()}
    return [[next(runs[size]) for size, _ in group.runs] for group in groups]


def harden(fit: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The assignment that fits each block best: which channel each place takes.

    Args:
        fit: stacked ``[ΣG, B, B]`` by size B; ``fit[B][g, i, j]`` says how well channel
            ``i`` of block ``g`` fits at place ``j``.

    Returns:
        stacked ``LongTensor[ΣG, B]`` by size.
    """
    return {size: assign_blocks(x.detach()).argsort(-1) for size, x in fit.items()}


def masked_weights(
    groups: Sequence[BlockedGroup],
    soft: Mapping[int, Tensor],
    local: Mapping[int, Tensor],
    *,
    soft_mask: bool = True,
) -> dict[str, Tensor]:
    """The pruned weights ``[C_out, C_in]`` of all groups' linears.

    Args:
        groups: the groups.
        soft: soft permutations, stacked ``[ΣG, B, B]`` by size; gradients flow to them.
        local: hard permutations, stacked ``LongTensor[ΣG, B]`` by size.
        soft_mask: which gradient they get, as in
            :func:`permllm.core.block_product.block_masked_weight`.
    """
    pieces, places = unstacked(groups, soft), unstacked(groups, local)
    weights: dict[str, Tensor] = {}
    for group, piece, place in zip(groups, pieces, places, strict=True):
        weights |= group.masked_weights(piece, place, soft_mask=soft_mask)
    return weights


def orders(groups: Sequence[BlockedGroup], local: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """The order of each group under the stacked hard permutations, on the CPU."""
    places = unstacked(groups, local)
    return {
        group.name: group.order(place).cpu() for group, place in zip(groups, places, strict=True)
    }
