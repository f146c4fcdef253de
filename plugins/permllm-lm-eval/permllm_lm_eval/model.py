"""A model of permllm, as the harness wants it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from lm_eval.models.huggingface import HFLM

from permllm.errors import RunFailed

BATCHES_PER_PART = 16
"""Progress is reported after so many batches."""


class InMemoryModel(HFLM):
    """A model that is in memory already, answers the harness's requests and says how far it is.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer; it is copied, since the harness may give it a padding token.
        batch_size: sequences per forward pass.
        add_bos_token: whether texts begin with the beginning-of-text token; None: as the
            tokenizer does by itself.
        progress: is told how many requests of one kind are done, of how many.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int,
        add_bos_token: bool | None,
        progress: Callable[[int, int], None],
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            backend="causal",
            batch_size=batch_size,
            add_bos_token=add_bos_token,
            # Sums of log-probabilities in bfloat16 would tie.
            softmax_dtype="float32",
        )
        self._progress = progress

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """How likely each continuation is after its context, and whether it is the likeliest.

        Raises:
            RunFailed: the logits are not finite.
        """
        answers = self._in_parts(super().loglikelihood, requests)
        _check_finite([score for score, _ in answers])
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """How likely each text is.

        Raises:
            RunFailed: the logits are not finite.
        """
        answers = self._in_parts(super().loglikelihood_rolling, requests)
        _check_finite(answers)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context."""
        return self._in_parts(super().generate_until, requests)

    def _in_parts(self, answer: Callable[[list[Any]], list[Any]], requests: list[Any]) -> list[Any]:
        """The answers in the order of the requests.

        Long texts come first and equal contexts together, as the harness orders them
        within a part.
        """
        total = len(requests)
        answers: dict[int, Any] = {}
        order = sorted(range(total), key=lambda index: _length_and_context(requests[index]))
        size = BATCHES_PER_PART * self.batch_size
        self._progress(0, total)
        for start in range(0, total, size):
            part = order[start : start + size]
            found = answer([requests[index] for index in part])
            answers |= dict(zip(part, found, strict=True))
            self._progress(len(answers), total)
        return [answers[index] for index in range(total)]


def _length_and_context(request: Any) -> tuple[int, str]:
    context = str(request.args[0])
    return -len(context), context


def _check_finite(scores: list[float]) -> None:
    if not all(map(math.isfinite, scores)):
        raise RunFailed("lm-eval: the model's logits are not finite")
