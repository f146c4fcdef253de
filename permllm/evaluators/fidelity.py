"""How close a pruned model stays to the dense one."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from permllm.components import Evaluator
from permllm.contexts.evaluation import EvaluationContext
from permllm.errors import UserError
from permllm.models.checks import not_finite


@attrs.frozen
class Fidelity(Evaluator):
    """Distance to the dense model on held-out calibration sequences.

    ``fidelity/kl`` is the mean over all tokens of KL(dense ‖ pruned) of the distributions
    of the next token, in nats; ``fidelity/cosine`` the mean cosine of the last hidden
    states. A model that equals the dense one has 0 and 1.
    """

    name: ClassVar[str] = "fidelity"
    parallel: ClassVar[bool] = True

    def evaluate(self, model: Any, tokenizer: Any, context: EvaluationContext) -> dict[str, float]:
        """``{"fidelity/kl": …, "fidelity/cosine": …}``.

        Raises:
            UserError: there are no held-out sequences, or no dense model.
            RunFailed: the model's logits are not finite.
        """
        if context.held_out is None or context.dense is None:
            raise UserError(
                "fidelity compares a pruned model with its dense one, which only a pipeline has",
                hint="put fidelity under evaluate: in a pipeline file",
            )
        if not len(context.held_out):
            raise UserError(
                "fidelity needs held-out calibration sequences",
                hint="set calibration.held_out to 1 or more",
            )
        batches = context.held_out.split(context.batch_size)
        own = context.world.own(len(batches))
        kl: list[float] = []
        cosine: list[float] = []
        context.progress(0, len(own))
        for done, place in enumerate(own, 1):
            tokens = batches[place].to(context.device)
            dense_logits, dense_hidden = _outputs(model, tokens, context.dense())
            logits, hidden = _outputs(model, tokens, nullcontext())
            kl += [divergence(*rows) for rows in zip(dense_logits, logits, strict=True)]
            cosine.append(float(cosine_similarity(dense_hidden, hidden, dim=-1).double().sum()))
            if not math.isfinite(sum(kl) + cosine[-1]):
                raise not_finite("fidelity: the model's logits are not finite", model)
            context.progress(done, len(own))
        count, gathered = context.held_out.numel(), context.world.gathered
        return {
            "fidelity/kl": sum(gathered(kl)) / count,
            "fidelity/cosine": sum(gathered(cosine)) / count,
        }


def divergence(dense: Tensor, pruned: Tensor) -> float:
    """The sum over positions of KL(dense ‖ pruned), in nats.

    Args:
        dense, pruned: logits ``[L, V]``.
    """
    likely, other = dense.float().log_softmax(-1), pruned.float().log_softmax(-1)
    # Rounding must not make a distance negative.
    return float((likely.exp() * (likely - other)).sum(-1).clamp_min(0).double().sum())


@torch.no_grad()
def _outputs(
    model: Any, tokens: Tensor, weights: AbstractContextManager[None]
) -> tuple[Tensor, Tensor]:
    """Logits ``[b, L, V]`` and last hidden states ``[b, L, H]`` in float32."""
    with weights:
        output = model(input_ids=tokens, use_cache=False, output_hidden_states=True)
    return output.logits, output.hidden_states[-1].float()
