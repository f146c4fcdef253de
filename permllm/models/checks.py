"""Refuses models and tokenizers that would give nonsense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from permllm.errors import RunFailed, UserError

if TYPE_CHECKING:
    from permllm.models.decoder import Decoder


def check_weights(decoder: Decoder) -> None:
    """Refuse a model with NaN or infinite weights.

    Raises:
        UserError: it names the module and the tensor.
    """
    for name, parameter in decoder.model.named_parameters():
        # Unlike isfinite of every number, the two ends take no memory.
        ends = parameter.detach().aminmax() if parameter.numel() else ()
        if not all(end.isfinite() for end in ends):
            wrong = int((~torch.isfinite(parameter)).sum())
            module, _, tensor = name.rpartition(".")
            raise UserError(
                f"'{tensor}' of {module} holds {wrong} NaN or infinite numbers of "
                f"{parameter.numel()}",
                hint="the model's files are damaged, or its dtype is too small for it",
            )


POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_target_positions",
    "n_ctx",
    "context_length",
    "seq_length",
)
"""What configurations call the longest sequence; the first that one has counts."""


def positions_of(config: Any) -> int | None:
    """The longest sequence that a model was made for; None where nothing is said."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    said = (getattr(text, name, None) for name in POSITIONS)
    return next((value for value in said if isinstance(value, int) and value > 0), None)


def check_tokens(what: str, tokens: Tensor, model: Any, tokenizer: Any) -> None:
    """Refuse sequences that a model cannot read.

    Args:
        what: reads them, as messages call it.
        tokens: ``LongTensor[n, L]``.
        model: the model.
        tokenizer: gave the tokens.

    Raises:
        UserError: they are longer than the model has positions, or hold a token that it has no
            embedding for.
    """
    limit = positions_of(getattr(model, "config", None))
    if limit is not None and tokens.shape[1] > limit:
        raise UserError(
            f"{what}: length {tokens.shape[1]} is more than the {limit} positions of the model",
            hint=f"give it length: {limit} or less",
        )
    rows = model.get_input_embeddings().weight.shape[0]
    unknown = tokens[tokens >= rows]
    if unknown.numel():
        token = int(unknown[0])
        raise UserError(
            f"{what}: the text holds {tokenizer.convert_ids_to_tokens(token)!r}, token {token} of "
            f"the tokenizer, and the model has only {rows} embeddings",
            hint=RESIZE,
        )


RESIZE = (
    "model.resize_token_embeddings(len(tokenizer)) makes room, for embeddings that have to be "
    "trained; else take such tokens out of the text"
)


def not_finite(what: str, model: Any) -> UserError | RunFailed:
    """The error for activations that are infinite or NaN; in float16 they may merely overflow."""
    if getattr(model, "dtype", None) == torch.float16:
        return UserError(
            f"{what}: float16 has no room for the model's activations, which reach beyond 65,504",
            hint="dtype: bfloat16 or dtype: float32 has",
        )
    return RunFailed(what)


def unknown_tokens(tokenizer: Any, model: Any) -> dict[str, int]:
    """Tokens that were added to a tokenizer and that the model has no embeddings for."""
    rows = model.get_input_embeddings().weight.shape[0]
    added: dict[str, int] = tokenizer.get_added_vocab()
    return {token: number for token, number in added.items() if number >= rows}


def check_merged(model: Any) -> None:
    """Refuse a model with an adapter beside its weights: it would undo what is pruned.

    Raises:
        UserError: it has one.
    """
    if getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            f"{type(model).__name__} has a PEFT adapter beside its weights",
            hint="merge it first: model = model.merge_and_unload()",
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
