"""Models and tokenizers that would give nonsense are refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MptConfig

from permllm.errors import RunFailed, UserError
from permllm.models.checks import (
    check_merged,
    check_tokenizer,
    check_tokens,
    check_weights,
    not_finite,
    positions_of,
    unknown_tokens,
)
from permllm.models.decoder import Decoder
from permllm.testing.models import VOCABULARY, tiny_model
from permllm.testing.tokenizers import byte_tokenizer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    decoder = Decoder.trace(tiny_model("llama"))
    check_weights(decoder)
    decoder.weight("model.layers.1.self_attn.k_proj")[3, 5] = value
    with pytest.raises(UserError, match=r"'weight' of model\.layers\.1\.self_attn\.k_proj holds 1"):
        check_weights(decoder)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused() -> None:
    tokenizer = byte_tokenizer()
    model = tiny_model("llama")
    check_tokenizer(tokenizer, model)
    model.resize_token_embeddings(VOCABULARY - 1, mean_resizing=False)
    with pytest.raises(UserError, match="up to 256, but the model has only 256 embeddings"):
        check_tokenizer(tokenizer, model)


def test_padding_beyond_the_vocabulary_is_no_mistake() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert len(tokenizer) == VOCABULARY + 1
    check_tokenizer(tokenizer, tiny_model("llama"))
    assert unknown_tokens(tokenizer, tiny_model("llama")) == {"<pad>": VOCABULARY}


def test_text_with_a_token_that_the_model_does_not_know_is_refused() -> None:
    tokenizer, model = byte_tokenizer(), tiny_model("llama")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    known = torch.tensor([tokenizer("I ")["input_ids"]])
    check_tokens("the text", known, model, tokenizer)
    with pytest.raises(
        UserError, match=r"the text: .* '<think>', token 257 .* 257 embeddings"
    ) as it:
        check_tokens("the text", torch.tensor([[1, 257]]), model, tokenizer)
    assert "resize_token_embeddings" in str(it.value.hint)


def test_sequences_longer_than_the_model_are_refused() -> None:
    tokenizer, model = byte_tokenizer(), tiny_model("gpt2")
    check_tokens("here", torch.zeros(1, 128, dtype=torch.long), model, tokenizer)
    with pytest.raises(UserError, match="here: length 129 is more than the 128 positions"):
        check_tokens("here", torch.zeros(1, 129, dtype=torch.long), model, tokenizer)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LlamaConfig(max_position_embeddings=77), 77),
        (GPT2Config(n_positions=66), 66),
        (MptConfig(max_seq_len=55), 55),
        (SimpleNamespace(n_ctx=44), 44),
        (SimpleNamespace(get_text_config=lambda: SimpleNamespace(seq_length=33)), 33),
        (SimpleNamespace(max_position_embeddings=None), None),
    ],
)
def test_positions_by_whatever_name(config: object, positions: int | None) -> None:
    assert positions_of(config) == positions


def test_a_model_with_an_adapter_is_refused() -> None:
    model = tiny_model("llama")
    check_merged(model)
    model.peft_config = {"default": object()}
    with pytest.raises(UserError, match="LlamaForCausalLM has a PEFT adapter") as caught:
        check_merged(model)
    assert "merge_and_unload()" in str(caught.value.hint)


def test_an_overflow_is_float16s() -> None:
    half = not_finite("what it reads", tiny_model("llama").half())
    assert isinstance(half, UserError)
    assert "float16" in half.message
    assert "bfloat16" in str(half.hint)
    assert isinstance(not_finite("what it reads", tiny_model("llama")), RunFailed)
