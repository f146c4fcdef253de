"""Models and tokenizers that would give nonsense are refused."""

from __future__ import annotations

import pytest

from permllm.errors import UserError
from permllm.models.checks import check_tokenizer, check_weights
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
