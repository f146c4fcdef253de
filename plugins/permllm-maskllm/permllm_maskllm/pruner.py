"""MaskLLM: masks learned through the pruned model (arXiv 2409.17481, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from torch import Tensor

from permllm.components import Pruner, option
from permllm.core.patterns import Pattern, nm_mask
from permllm.training.options import TrainingOptions
from permllm_maskllm.optimiser import DTYPES

if TYPE_CHECKING:
    from permllm.contexts.window import Window


@attrs.frozen
class MaskLlm(TrainingOptions, Pruner):
    """Learns which N of every M weights to keep through the pruned model (MaskLLM).

    Every group of M consecutive weights, in permuted order, has a distribution over the
    candidate masks, whose logits train while all weights stay as they are. A step draws a
    soft mask of every group (Gumbel softmax) and takes the loss of the window under it; the
    likeliest candidates are the mask in the end. Training starts from the one-shot mask of
    the metric's scores. The preset ``paper`` gives the settings of the paper's table 7, and
    what it leaves open as the authors' script for LLaMA-2 7B has it.
    """

    name: ClassVar[str] = "maskllm"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "candidates": 4096,
            "prior": "mask",
            "prior_strength": 3.0,
            "spread": 0.01,
            "scale_start": 100.0,
            "scale_end": 500.0,
            "temperature_start": 4.0,
            "temperature_end": 0.05,
            "noise": 1.0,
            "hard": False,
            "regularisation": 1e-5,
            "learning_rate": 5e-4,
            "learning_rate_end": 5e-5,
            "weight_decay": 0.1,
            "square_decay": 0.95,
            "epsilon": 1e-5,
            "moments": "float32",
            "schedule": "cosine",
            "steps": 2000,
            "batch": 256,
            "precision": "bfloat16",
            "loss": "next-token",
            "fresh": True,
            "select": "last",
        }
    }

    candidates: int = option(
        16,
        help="masks that each group chooses from at the most, those that keep the higher scores "
        "first: 2:4 has 6, 4:8 has 70",
        minimum=2,
        maximum=4096,
    )
    prior: str = option(
        "scores",
        help="what the first logits tell the candidates apart by: scores, the share of the "
        "group's scores that a candidate keeps; or mask, its overlap with the one-shot mask",
        choices=("scores", "mask"),
    )
    prior_strength: float = option(
        1.0, help="times which the first logits take the prior (the paper's α)", minimum=0
    )
    spread: float = option(
        0.0,
        help="standard deviation σ of the random part of the first logits, "
        "and the unit of prior mask",
        minimum=0,
    )
    scale_start: float = option(
        1.0, help="scale κ of the logits against the noise at the first step", minimum=1e-3
    )
    scale_end: float = option(
        1.0, help="scale κ of the logits at the last step; linear between", minimum=1e-3
    )
    temperature_start: float = option(
        0.2, help="softmax's temperature τ at the first step", minimum=1e-3
    )
    temperature_end: float = option(
        0.05, help="softmax's temperature τ at the last step; linear between", minimum=1e-3
    )
    noise: float = option(
        0.0, help="times which Gumbel noise is added to the scaled logits", minimum=0
    )
    hard: bool = option(
        False,
        help="go forward with hard masks, and backward with soft ones (straight-through)",
    )
    regularisation: float = option(
        0.0,
        help="λ of the term -λ‖W⊙M‖² in the loss, which keeps large weights; linear to zero, "
        "as in the published code",
        minimum=0,
    )
    learning_rate: float = option(0.005, help="learning rate at the first step", minimum=0)
    weight_decay: float = option(0.0, help="decoupled weight decay of the logits", minimum=0)
    square_decay: float = option(
        0.95, help="AdamW's second β, of the mean square gradient", minimum=0, maximum=0.99999
    )
    epsilon: float = option(1e-12, help="AdamW's ε; gradients far below it hardly count", minimum=0)
    moments: str = option(
        "float32",
        help="type of AdamW's two averages; bfloat16 saves 4 bytes a logit",
        choices=tuple(DTYPES),
    )

    def refine(self, window: Window, permutations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of 1 for what the learned masks keep and of 0 for the rest.

        Linears that other pruners prune take part with the mask of their scores.

        Raises:
            RunFailed: the loss is not finite.
        """
        from permllm_maskllm.training import LearnedMasks

        masks = LearnedMasks(self, window, permutations, window.linears_of(self))
        return masks.scores(self.train(masks, window))

    def prune(
        self, weight: Tensor, scores: Tensor, pattern: Pattern, statistics: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The masked weight and the mask of the scores, both ``[C_out, C_in]``."""
        mask = nm_mask(scores, pattern)
        return weight.masked_fill(~mask, 0), mask
