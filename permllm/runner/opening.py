"""The one way in which a model is opened to be pruned: checked, traced, checked again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from permllm.models.checks import check_merged, check_tokenizer, check_tokens, check_weights
from permllm.models.decoder import Decoder


def open_decoder(
    model: Any, tokenizer: Any, tokens: Tensor | None = None, dtype: torch.dtype | None = None
) -> Decoder:
    """A model as a chain of decoder layers, in eval mode.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        tokens: ``LongTensor[n, L]`` that it is pruned with, to trace it with, too; arbitrary
            ones without.
        dtype: what it computes in, where its parameters are narrower.

    Raises:
        UserError: the tokenizer does not belong to the model, the model cannot be taken
            apart or has an adapter, it has NaN or infinite weights, or the tokens are too many
            or unknown to it.
    """
    check_tokenizer(tokenizer, model)
    check_merged(model)
    if tokens is not None:
        check_tokens("the calibration text", tokens, model, tokenizer)
    decoder = Decoder.trace(model, tokens, dtype)
    check_weights(decoder)
    return decoder
