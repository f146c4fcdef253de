from __future__ import annotations

import pytest
import torch
from torch import nn

from permllm.core.statistics import SQUARE_SUM, TOKENS
from permllm.errors import UserError
from permllm.models.decoder import Decoder
from permllm.testing.models import tiny_model

TOKENS_2 = torch.arange(24).reshape(2, 12)


def test_experts_that_no_token_is_routed_to_have_empty_sums() -> None:
    model = tiny_model("mixtral")
    for layer in model.model.layers:
        nn.init.zeros_(layer.mlp.gate.weight)
    decoder = Decoder.trace(model)
    assert sum("experts" in name for name in decoder.linears) == 2 * 4 * 2
    calls = decoder.embed(TOKENS_2)
    _, sums = decoder.statistics(0, calls.hidden, calls, [TOKENS, SQUARE_SUM])
    unseen = [name for name, found in sums.items() if float(found["tokens"]) == 0]
    assert len(unseen) == 4
    for name in unseen:
        assert torch.equal(sums[name]["square_sum"], torch.zeros(decoder.groups[name].channels))


def test_substitutions_nest() -> None:
    decoder = Decoder.trace(tiny_model("llama"))
    name = "model.layers.0.mlp.up_proj"
    dense = {name: decoder.weight(name)}
    before = dense[name].clone()
    with decoder.substituted({name: torch.zeros_like(before)}):
        assert not decoder.weight(name).any()
        with decoder.substituted(dense):
            assert torch.equal(decoder.weight(name), before)
        assert not decoder.weight(name).any()
    assert torch.equal(decoder.weight(name), before)


def test_substitutions_are_taken_back_after_an_error() -> None:
    decoder = Decoder.trace(tiny_model("gpt-oss"))
    before = {name: decoder.weight(name).clone() for name in decoder.linears}
    zeros = {name: torch.zeros_like(weight) for name, weight in before.items()}
    with pytest.raises(UserError, match="stop"), decoder.substituted(zeros):
        raise UserError("stop")
    for name, weight in before.items():
        assert torch.equal(decoder.weight(name), weight)


def test_given_weights_may_have_another_dtype() -> None:
    decoder = Decoder.trace(tiny_model("llama").bfloat16())
    calls = decoder.embed(TOKENS_2)
    weights = {name: decoder.weight(name).float().requires_grad_() for name in decoder.linears}
    output = decoder.run_layer(0, calls.hidden, calls, weights)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    grad = weights["model.layers.0.mlp.down_proj"].grad
    assert grad is not None
    assert grad.dtype == torch.float32


def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    decoder = Decoder.trace(tiny_model("mistral"))
    both, one = decoder.embed(TOKENS_2), decoder.embed(TOKENS_2[1:])
    with torch.no_grad():
        together = decoder.run_layer(0, both.hidden, both)
        alone = decoder.run_layer(0, one.hidden, one)
    torch.testing.assert_close(together[1:], alone)


def test_placing_on_the_processor_keeps_the_parameters() -> None:
    decoder = Decoder.trace(tiny_model("gemma"))
    before = {name: p.data_ptr() for name, p in decoder.model.named_parameters()}
    decoder.place("cpu", range(1))
    assert {name: p.data_ptr() for name, p in decoder.model.named_parameters()} == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["gemma", "mixtral"])
def test_a_window_runs_on_the_device_while_other_layers_stay_away(name: str) -> None:
    decoder = Decoder.trace(tiny_model(name))
    calls = decoder.embed(TOKENS_2)
    with torch.no_grad():
        first = decoder.run_layer(0, calls.hidden, calls)
        second, sums = decoder.statistics(1, first, calls, [SQUARE_SUM])
        logits = decoder.head(second, TOKENS_2)
        decoder.place("cuda", [1])
        for key, tensor in decoder.model.state_dict().items():
            assert tensor.is_cuda != key.startswith(f"{decoder.layer_names[0]}."), key
        moved = decoder.embed(TOKENS_2.cuda())
        hidden, there = decoder.statistics(1, first.cuda(), moved, [SQUARE_SUM])
        close = {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(decoder.head(hidden, TOKENS_2.cuda()).cpu(), logits, **close)
        for group, found in sums.items():
            torch.testing.assert_close(
                there[group]["square_sum"].cpu(), found["square_sum"], **close
            )
