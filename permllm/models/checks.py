"""Refuses models and tokenizers that would give nonsense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from permllm.errors import UserError

if TYPE_CHECKING:
    from permllm.models.decoder import Decoder


def check_weights(decoder: Decoder) -> None:
    """Refuse a model with NaN or infinite weights.

    Raises:
        UserError: it names the module and the tensor.
    """
    for name, parameter in decoder.model.named_parameters():
        wrong = int((~torch.isfinite(parameter)).sum())
        if wrong:
            module, _, tensor = name.rpartition(".")
            raise UserError(
                f"'{tensor}' of {module} holds {wrong} NaN or infinite numbers of "
                f"{parameter.numel()}",
                hint="the model's files are damaged, or its dtype is too small for it",
            )


def check_tokenizer(tokenizer: Any, model: Any) -> None:
    """Refuse a tokenizer that gives token ids which the model does not know.

    Tokens that were added beyond the vocabulary and that text does not give, such as
    for padding, are left aside.

    Raises:
        UserError: the model has fewer embeddings than the tokenizer has tokens.
    """
    added = set(tokenizer.get_added_vocab().values())
    used = {token for token in tokenizer.get_vocab().values() if token not in added}
    used |= {token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token}
    rows = model.get_input_embeddings().weight.shape[0]
    if used and max(used) >= rows:
        raise UserError(
            f"the tokenizer gives token ids up to {max(used)}, but the model has only "
            f"{rows} embeddings: they do not belong together"
        )
