"""The sizes that a configuration tells are those of the model built from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, ViTConfig

from permllm.errors import UserError
from permllm.models.decoder import Decoder
from permllm.models.loading import load
from permllm.models.shape import check_shapes, model_shape
from permllm.models.sources import DirectorySource
from permllm.testing.models import save_tiny, tiny_model

CONFIGS = [
    LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        max_position_embeddings=64,
    ),
    GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=64),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_sizes_are_those_of_the_built_model(config: PretrainedConfig) -> None:
    shape = model_shape(config)
    model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (shape.layers, shape.hidden, shape.vocabulary, shape.positions) == (2, 32, 100, 64)
    for name, channels in shape.channels.items():
        module = model.get_submodule(name)
        wide = module(torch.zeros(1, channels)).shape[-1]
        assert module.weight.numel() == wide * channels


def test_model_that_is_no_language_model() -> None:
    with pytest.raises(UserError, match="no causal language model"):
        model_shape(ViTConfig())


def test_sizes_that_do_not_go_together_are_the_users_to_mend() -> None:
    # Its own code divides by the heads.
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1)
    config.num_key_value_heads = 0
    with pytest.raises(UserError, match="no causal language model can be built"):
        model_shape(config)


def test_weights_of_other_shapes_than_the_configuration_makes_are_refused(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    config = LlamaConfig.from_pretrained(folder)
    check_shapes(folder, model_shape(config))
    config.vocab_size += 3
    expected = r"'lm_head.weight' is \[257, 32\] in the files of .*makes it \[260, 32\]"
    with pytest.raises(UserError, match=expected):
        check_shapes(folder, model_shape(config))
    config.save_pretrained(folder)
    with pytest.raises(UserError, match=expected):
        load(DirectorySource(folder))


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "gpt-oss"])
def test_the_channels_of_experts_are_those_that_are_traced(name: str) -> None:
    model = tiny_model(name)
    traced = {
        full: linear.c_in
        for full, linear in Decoder.trace(model).linears.items()
        if linear.index is not None
    }
    assert traced
    assert model_shape(model.config).experts == traced
