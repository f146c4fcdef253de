"""Perplexity on a text."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from permllm.components import EVALUATED_TOKENS, Dataset, Evaluator, documents
from permllm.contexts.cost import ComponentCost, Workload
from permllm.contexts.evaluation import EvaluationContext
from permllm.datasets.python_docs import PythonDocs
from permllm.datasets.sequences import first_tokens, plain_text, too_short
from permllm.models.checks import check_tokens, not_finite
from permllm.option import option

LENGTHS = {"documents": 256, "published": 2048}
"""Tokens that the model sees at once by each protocol, unless another number is given."""


@attrs.frozen
class Perplexity(Evaluator):
    """Perplexity on a text, weighted by tokens.

    What is computed: the documents of the split are tokenised one by one and joined by
    the end-of-text token, in their order; nothing else is added, no beginning-of-text
    token either. The result is cut, not shuffled, into windows of ``length`` tokens that
    start ``stride`` tokens apart; what is left at the end and fills no window is not used.
    The model sees each window on its own. In the first window all tokens but the first
    are scored. In the others, with a stride equal to the length, too; with a shorter
    stride their last ``stride`` tokens, so that no token is scored twice. The figure is
    ``exp`` of the sum of the scored tokens' negative log-likelihoods over their number.

    With ``protocol: published`` it is the figure of the papers on GPTQ, SparseGPT and Wanda
    for WikiText-2: all rows of the split, blank ones too, are joined by two line ends and
    tokenised at once as the tokenizer does by itself, with a beginning-of-text token where it
    adds one; the whole text is cut into windows of 2,048 tokens, of which all tokens but
    the first are scored. The figure's name ends with ``/published``.
    """

    name: ClassVar[str] = "perplexity"
    compares: ClassVar[bool] = False
    parallel: ClassVar[bool] = True

    dataset: Dataset = option(factory=PythonDocs, help="where the text comes from")
    split: str = option("test", help="the dataset's split", choices=("test", "train"))
    protocol: str = option(
        "documents",
        help="how rows become tokens: each by itself, or joined as papers on pruning do",
        choices=tuple(LENGTHS),
    )
    length: int | None = option(
        None,
        help="tokens that the model sees at once; null for 256, or 2048 as published",
        minimum=2,
        maximum=10**6,
    )
    stride: int | None = option(
        None,
        help="tokens between the starts of two windows, at most length; null for length",
        minimum=1,
    )
    max_tokens: int | None = option(
        None, help="use the first tokens of the text only; null for all", minimum=2
    )

    def __attrs_post_init__(self) -> None:
        length = self._length
        if self.stride is not None and self.stride > length:
            raise ValueError(
                f"stride ({self.stride}) must not be more than length ({length}): "
                "the tokens between windows would be left out"
            )
        if self.max_tokens is not None and self.max_tokens < length:
            raise ValueError(f"max_tokens ({self.max_tokens}) must be at least length ({length})")
        if self.protocol == "published":
            for name in ("stride", "max_tokens"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} must be left out with protocol: published, which takes the "
                        "whole text in windows that do not overlap"
                    )

    def cost(self, workload: Workload) -> ComponentCost:
        """Of the tokens that it reads, a window at a time."""
        return ComponentCost(tokens=self.max_tokens or EVALUATED_TOKENS, longest=self._length)

    def check(self) -> None:
        """Whether the text is there."""
        self.dataset.check()

    def evaluate(self, model: Any, tokenizer: Any, context: EvaluationContext) -> dict[str, float]:
        """``{"perplexity/<dataset>": …}``, or ``{"perplexity/<dataset>/published": …}``.

        Raises:
            UserError: the text is missing, shorter than one window, or longer windows
                are asked for than the model has positions.
            RunFailed: the model's logits are not finite.
        """
        windows = self._windows(tokenizer)
        check_tokens("perplexity", windows, model, tokenizer)
        overlap = self._length - (self.stride or self._length)
        # Of tokens that an earlier window has scored, only the first's own are new.
        skip = max(0, overlap - 1)
        batches = windows.split(context.batch_size)
        own = context.world.own(len(batches))
        sums: list[tuple[float, int]] = []
        context.progress(0, len(own))
        for done, place in enumerate(own, 1):
            losses = token_losses(model, batches[place].to(context.device))
            sums.append((float(losses[:, skip:].sum()), losses[:, skip:].numel()))
            if place == 0:
                sums.append((float(losses[0, :skip].sum()), skip))
            if not all(math.isfinite(total) for total, _ in sums[-2:]):
                what = f"perplexity on '{self.dataset.label()}': the model's logits are not finite"
                raise not_finite(what, model)
            context.progress(done, len(own))
        totals, counts = zip(*context.world.gathered(sums), strict=True)
        return {self._figure: _exp(sum(totals) / sum(counts))}

    @property
    def _length(self) -> int:
        return self.length or LENGTHS[self.protocol]

    @property
    def _figure(self) -> str:
        end = "/published" if self.protocol == "published" else ""
        return f"perplexity/{self.dataset.label()}{end}"

    def _windows(self, tokenizer: Any) -> Tensor:
        """``LongTensor[windows, length]``."""
        tokens = self._tokens(tokenizer)
        if len(tokens) < self._length:
            raise too_short(self.dataset, len(tokens), self._length, "one window")
        return tokens.unfold(0, self._length, self.stride or self._length)

    def _tokens(self, tokenizer: Any) -> Tensor:
        """``LongTensor[tokens]``."""
        if self.protocol == "documents":
            texts = documents(self.dataset.texts(self.split), self.dataset)
            return first_tokens(texts, tokenizer, self.max_tokens)
        rows = [
            plain_text(row, tokenizer)
            for row in documents(self.dataset.rows(self.split), self.dataset)
        ]
        return torch.tensor(tokenizer("\n\n".join(rows), verbose=False)["input_ids"])


@torch.no_grad()
def token_losses(model: Any, tokens: Tensor) -> Tensor:
    """The negative log-likelihood of each token but the first, in nats.

    Args:
        model: a causal language model.
        tokens: ``LongTensor[b, L]``.

    Returns:
        ``[b, L-1]`` in float64 on the CPU.
    """
    logits = model(input_ids=tokens, use_cache=False).logits
    # Row by row: a float32 copy of all logits would need as much memory again.
    losses = [
        cross_entropy(row[:-1].float(), targets[1:], reduction="none").cpu().double()
        for row, targets in zip(logits, tokens, strict=True)
    ]
    return torch.stack(losses)


def _exp(mean: float) -> float:
    """``exp``, infinite where it is more than a float can hold."""
    return math.exp(mean) if mean < 700 else math.inf
