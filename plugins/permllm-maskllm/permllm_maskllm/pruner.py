"""MaskLLM: masks learned through the pruned model (arXiv 2409.17481, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from torch import Tensor

from permllm.components import Pruner
from permllm.core.patterns import Pattern, nm_mask
from permllm_maskllm.options import MaskOptions
from permllm_maskllm.training import LearnedMasks

if TYPE_CHECKING:
    from permllm.contexts.window import Window


@attrs.frozen
class MaskLlm(MaskOptions, Pruner):
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

    def refine(self, window: Window, permutations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of 1 for what the learned masks keep and of 0 for the rest.

        Linears that other pruners prune take part with the mask of their scores.

        Raises:
            RunFailed: the loss is not finite.
        """
        masks = LearnedMasks(self, window, permutations, window.linears_of(self))
        return masks.scores(self.train(masks, window))

    def prune(
        self, weight: Tensor, scores: Tensor, pattern: Pattern, statistics: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The masked weight and the mask of the scores, both ``[C_out, C_in]``."""
        mask = nm_mask(scores, pattern)
        return weight.masked_fill(~mask, 0), mask
