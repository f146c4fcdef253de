"""The one way to open a decoder: what is wrong with a model is said before anything is done."""

from __future__ import annotations

import math

import pytest
import torch

from permllm.errors import UserError
from permllm.runner.opening import open_decoder
from permllm.testing.models import tiny_model
from permllm.testing.tokenizers import byte_tokenizer


def test_a_model_is_traced_and_put_into_eval_mode() -> None:
    model = tiny_model("llama").train()
    decoder = open_decoder(model, byte_tokenizer(), torch.arange(8)[None])
    assert decoder.model is model
    assert not model.training
    assert len(decoder.layers) == 2


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj holds 1 NaN or infinite"):
        open_decoder(model, byte_tokenizer())


def test_a_tokenizer_of_another_model_is_refused_before_tracing() -> None:
    model = tiny_model("llama")
    model.resize_token_embeddings(16)
    model.forward = None  # tracing would call it
    with pytest.raises(UserError, match="do not belong together"):
        open_decoder(model, byte_tokenizer())
