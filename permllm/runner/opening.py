"""The one way in which a model is opened to be pruned: checked, traced, checked again."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from permllm.models.checks import check_tokenizer, check_weights
from permllm.models.decoder import Decoder


def open_decoder(model: Any, tokenizer: Any, tokens: Tensor | None = None) -> Decoder:
    """A model as a chain of decoder layers, in eval mode.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        tokens: ``LongTensor[1, L]`` to trace it with; arbitrary ones without.

    Raises:
        UserError: the tokenizer does not belong to the model, the model cannot be taken
            apart, or it has NaN or infinite weights.
    """
    check_tokenizer(tokenizer, model)
    decoder = Decoder.trace(model, tokens)
    check_weights(decoder)
    return decoder
