"""Distances between the pruned and the dense window, for learners that train."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from permllm.runner.windows import Window


def cosine(window: Window, hidden: Tensor, rows: Tensor) -> Tensor:
    """Mean over tokens of ``1 - cos`` of the hidden states at the window's end (PermLLM).

    Args:
        window: gives the dense model's hidden states.
        hidden: ``[b, L, H]``, the pruned window's output for the sequences ``rows``.
        rows: ``LongTensor[b]``.
    """
    dense = window.targets(rows).float()
    return 1 - functional.cosine_similarity(hidden.float(), dense, dim=-1).mean()


def kl(window: Window, hidden: Tensor, rows: Tensor) -> Tensor:
    """Mean over tokens of ``KL(dense ‖ pruned)`` of the next token's distribution, in nats.

    Args:
        window: gives the dense model's hidden states and the model's head.
        hidden: ``[b, L, H]``, the pruned window's output for the sequences ``rows``.
        rows: ``LongTensor[b]``.
    """
    pruned = window.logits(hidden, rows).flatten(0, 1).float().log_softmax(-1)
    dense = window.target_logits(rows).flatten(0, 1).float().log_softmax(-1)
    return functional.kl_div(pruned, dense, reduction="batchmean", log_target=True)


LOSSES: dict[str, Callable[[Window, Tensor, Tensor], Tensor]] = {"cosine": cosine, "kl": kl}
"""Every loss by its name in a pipeline file."""
