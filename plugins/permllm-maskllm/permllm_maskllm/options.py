"""The options of MaskLLM (arXiv 2409.17481, section 3.2 and table 7)."""

from __future__ import annotations

import attrs

from permllm.components import option
from permllm.training.options import TrainingOptions


@attrs.frozen
class MaskOptions(TrainingOptions):
    """How masks are learned."""

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
        choices=("float32", "bfloat16"),
    )
