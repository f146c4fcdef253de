"""Distances between the pruned and the dense window, for components that train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from permllm.core.divergence import mean_kl
from permllm.core.precision import has_bfloat16

if TYPE_CHECKING:
    from permllm.contexts.window import Window


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
    pruned = window.logits(hidden, rows).flatten(0, 1)
    return mean_kl(pruned, window.target_logits(rows).flatten(0, 1))


def next_token(window: Window, hidden: Tensor, rows: Tensor) -> Tensor:
    """The language model's own loss: mean ``-log p`` of each next token, in nats.

    Args:
        window: gives the tokens and the model's head.
        hidden: ``[b, L, H]``, the pruned window's output for the sequences ``rows``.
        rows: ``LongTensor[b]``.
    """
    logits = window.logits(hidden, rows)[:, :-1].flatten(0, 1).float()
    following = window.tokens[rows][:, 1:].flatten().to(logits.device)
    return functional.cross_entropy(logits, following)


Distance = Callable[["Window", Tensor, Tensor], Tensor]

LOSSES: dict[str, Distance] = {"cosine": cosine, "kl": kl, "next-token": next_token}
"""Every loss by its name in a pipeline file."""

PRECISIONS = ("auto", "model", "bfloat16")
"""How matrix products are done: in bfloat16 where the processor multiplies it natively
(``auto``), in the model's dtype, or in bfloat16 (autocast)."""


@attrs.frozen(eq=False)
class WindowLoss:
    """The loss of a window under replaced weights.

    Attributes:
        window: the window.
        distance: the loss as a function of the window's outputs.
        bfloat16: whether products are done in bfloat16.
        recompute: whether the backward pass computes activations again instead of keeping
            them, and logits one sequence at a time.
    """

    window: Window
    distance: Distance
    bfloat16: bool
    recompute: bool = False

    @classmethod
    def of(
        cls, window: Window, loss: str, precision: str, *, recompute: bool = False
    ) -> WindowLoss:
        """The loss of that name.

        Args:
            window: a window that stops short of the last layer has no logits, and takes
                the cosine whatever ``loss`` says.
            loss: one of :data:`LOSSES`.
            precision: one of :data:`PRECISIONS`.
            recompute: trade time for memory.
        """
        native = precision == "auto" and has_bfloat16(window.device)
        distance = LOSSES[loss if window.reaches_head else "cosine"]
        return cls(window, distance, native or precision == "bfloat16", recompute)

    @property
    def dtype(self) -> torch.dtype | None:
        """In which products are done, None for the model's."""
        return torch.bfloat16 if self.bfloat16 else None

    def __call__(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """A scalar; gradients flow back to the weights.

        Args:
            weights: ``[C_out, C_in]`` by linear; others keep the dense weight.
            rows: ``LongTensor[b]``, the sequences.
        """
        with torch.autocast(self.window.device.type, torch.bfloat16, enabled=self.bfloat16):
            outputs = self.window.outputs(weights, rows, recompute=self.recompute)
            return self.compare(outputs, rows)

    def compare(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """The distance of the window's outputs ``[b, L, H]`` from the dense window's."""
        if not self.recompute:
            return self.distance(self.window, outputs, rows)
        # Sequences are equally long, so the mean over tokens is that of their means.
        each = [
            checkpoint(self.distance, self.window, one, row, use_reentrant=False)
            for one, row in zip(outputs.split(1), rows.split(1), strict=True)
        ]
        return torch.stack(each).mean()

    def share_targets(self, rows: Tensor) -> None:
        """Have the processes compute what the dense model says of some sequences, each some.

        Args:
            rows: ``LongTensor[b]``, the same in all processes.
        """
        if self.distance is next_token:
            return  # it asks the text, and not the dense model
        with torch.autocast(self.window.device.type, torch.bfloat16, enabled=self.bfloat16):
            self.window.share_targets(rows)

    @torch.no_grad()
    def held_out(
        self, weights: Mapping[str, Tensor], batch: int, *, dealt: int | None = None
    ) -> float:
        """The mean over the held-out sequences; NaN without any.

        Args:
            weights: as in a step.
            batch: so many at a time.
            dealt: so many at a time go to one process; all hear the same.
        """
        held_out, world = self.window.held_out, self.window.world
        if not len(held_out):
            return float("nan")
        if world.many:
            self.share_targets(held_out)
        parts = held_out.split(dealt or batch)
        own = [parts[place] for place in world.own(len(parts))]
        losses = world.gathered(
            [float(self(weights, part)) * len(part) for rows in own for part in rows.split(batch)]
        )
        return sum(losses) / len(held_out)
