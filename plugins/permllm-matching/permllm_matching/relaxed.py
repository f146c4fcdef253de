"""The pruned weight under a soft permutation, with the exact gradient of the relaxation.

The paper trains through the relaxed permutation itself: channels are mixed by ``P``,
the mixed weight is masked, and what remains is mixed back,

    W' = (M ⊙ (W P)) Pᵀ,    M = top-N of every M of (S P).

As ``P`` hardens, this becomes the pruned weight under a permutation. The mask has no
gradient; what the loss says about ``P`` comes through the two mixings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from permllm.core.patterns import Pattern, nm_mask_by_rows
from permllm.core.permutations import invert


def relaxed_masked_weight(
    weight: Tensor, scores: Tensor, soft: Sequence[Tensor], start: Tensor, pattern: Pattern
) -> Tensor:
    """``W'``, differentiable with respect to the soft permutation.

    Args:
        weight: ``[C_in, C_out]``, channels in their original order.
        scores: ``[C_in, C_out]``, channels in the order ``start``.
        soft: runs of blocks ``[G, B, B]``, doubly stochastic; ``soft[g, i, j]`` is how
            much channel ``i`` of block ``g`` belongs at place ``j``. The sum of ``G · B``
            over the runs is C_in.
        start: ``LongTensor[C_in]``, the order that the blocks are cut from.
        pattern: N:M with M dividing every B.

    Returns:
        ``[C_in, C_out]``, channels in their original order.
    """
    ordered = weight.index_select(0, start)
    pieces, offset = [], 0
    for run in soft:
        rows = slice(offset, offset + run.shape[0] * run.shape[1])
        blocks, block_scores = (x[rows].unflatten(0, run.shape[:2]) for x in (ordered, scores))
        piece = run.to(weight.dtype)
        mixed, mixed_scores = piece.mT @ blocks, piece.detach().mT @ block_scores
        mask = nm_mask_by_rows(mixed_scores.flatten(0, 1), pattern).view_as(mixed)
        pieces.append((piece @ (mixed * mask)).flatten(0, 1))
        offset = rows.stop
    return torch.cat(pieces).index_select(0, invert(start))
