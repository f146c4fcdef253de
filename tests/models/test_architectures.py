"""Every architecture is taken apart, run with other weights, and saved, all alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from permllm.core.statistics import GRAM, SQUARE_SUM, TOKENS
from permllm.models.decoder import Decoder
from permllm.testing.models import ARCHITECTURES, VOCABULARY, tiny_model

ATTENTION = [("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",)]
LLAMA = [*ATTENTION, ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)]
EXPERTS = [
    (f"mlp.experts.{part}_proj[{index}]",) for index in range(4) for part in ("gate_up", "down")
]
GROUPS: dict[str, list[tuple[str, ...]]] = {
    "llama": LLAMA,
    "llama-gqa": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "gemma3": LLAMA,
    "opt": [ATTENTION[0], ("self_attn.out_proj",), ("fc1",), ("fc2",)],
    "gpt2": [("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)],
    "gpt-neox": [
        ("attention.query_key_value",),
        ("attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ],
    "phi3": [
        ("self_attn.qkv_proj",),
        ("self_attn.o_proj",),
        ("mlp.gate_up_proj",),
        ("mlp.down_proj",),
    ],
    "falcon": [
        ("self_attention.query_key_value", "mlp.dense_h_to_4h"),
        ("self_attention.dense",),
        ("mlp.dense_4h_to_h",),
    ],
    "falcon-new": [
        ("self_attention.query_key_value",),
        ("self_attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ],
    "mixtral": [*ATTENTION, *EXPERTS],
    "gpt-oss": [*ATTENTION, *EXPERTS],
    "qwen2-moe": [
        *ATTENTION,
        *EXPERTS,
        ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert_gate"),
        ("mlp.shared_expert.down_proj",),
    ],
    "bloom": [
        ("self_attention.query_key_value",),
        ("self_attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ],
    "llama4": [
        *ATTENTION,
        *[(linear.replace("mlp", "feed_forward"),) for (linear,) in EXPERTS],
        ("feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"),
        ("feed_forward.shared_expert.down_proj",),
    ],
    "jamba": [
        *[(f"mamba.{name}_proj",) for name in ("in", "x", "out")],
        ("feed_forward.gate_proj", "feed_forward.up_proj"),
        ("feed_forward.down_proj",),
    ],
}
"""The groups of a layer, without regard to their order; of the first one, if they differ."""

SECOND: dict[str, list[tuple[str, ...]]] = {
    "jamba": [*ATTENTION, *[(linear.replace("mlp", "feed_forward"),) for (linear,) in EXPERTS]],
}
"""Those of the second layer, where they differ."""

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))


def halved(decoder: Decoder) -> dict[str, Tensor]:
    """Other weights for all linears: every second input channel is cut."""
    weights = {name: decoder.weight(name).clone() for name in decoder.linears}
    for weight in weights.values():
        weight[:, ::2] = 0
    return weights


def layer_by_layer(decoder: Decoder, tokens: Tensor, weights: dict[str, Tensor]) -> Tensor:
    calls = decoder.embed(tokens)
    hidden = calls.hidden
    for index in range(len(decoder.layers)):
        hidden = decoder.run_layer(index, hidden, calls, weights)
    return decoder.head(hidden, tokens)


@every_architecture
def test_groups_are_the_linears_that_read_one_tensor(name: str) -> None:
    decoder = Decoder.trace(tiny_model(name))
    assert len(decoder.layers) == len(decoder.layer_names) == 2
    for layer, title in enumerate(decoder.layer_names):
        found = [group for group in decoder.groups.values() if group.layer == layer]
        groups = SECOND.get(name, GROUPS[name]) if layer else GROUPS[name]
        expected = [tuple(f"{title}.{linear}" for linear in group) for group in groups]
        assert sorted(group.linears for group in found) == sorted(expected)
        for group in found:
            inside = [linear.removeprefix(f"{title}.") for linear in group.linears]
            assert group.name == f"{title}:{','.join(inside)}"
    for group in decoder.groups.values():
        for linear in group.linears:
            assert decoder.linears[linear].layer == group.layer
            assert decoder.weight(linear).shape[1] == decoder.linears[linear].c_in == group.channels
            assert decoder.weight(linear).shape[0] == decoder.linears[linear].c_out
    left = {one for one in decoder.skipped if not one.endswith(".dt_proj")}
    assert all("router" in decoder.skipped[one] for one in left)


@every_architecture
def test_layers_run_one_by_one_as_the_model_does(name: str, tokens: Tensor) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    with torch.no_grad():
        torch.testing.assert_close(layer_by_layer(decoder, tokens, {}), model(tokens).logits)


@every_architecture
def test_given_weights_act_as_weights_in_place(name: str, tokens: Tensor) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    weights = halved(decoder)
    with torch.no_grad():
        dense = model(tokens).logits
        given = layer_by_layer(decoder, tokens, weights)
        with decoder.substituted(weights):
            torch.testing.assert_close(model(tokens).logits, given)
        assert not torch.allclose(given, dense, atol=1e-2)
        assert torch.equal(model(tokens).logits, dense)


@every_architecture
def test_gradients_reach_the_given_weights_and_nothing_else(name: str, tokens: Tensor) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    weights = {linear: weight.requires_grad_() for linear, weight in halved(decoder).items()}
    layer_by_layer(decoder, tokens, weights).square().sum().backward()
    for weight in weights.values():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
    assert sum(weight.grad.abs().sum() > 0 for weight in weights.values()) >= 0.8 * len(weights)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@every_architecture
def test_gradients_are_those_of_the_parameters(name: str, tokens: Tensor) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    weights = {
        linear: decoder.weight(linear).clone().requires_grad_() for linear in decoder.linears
    }
    layer_by_layer(decoder, tokens, weights).square().sum().backward()
    model(tokens).logits.square().sum().backward()
    for linear in decoder.linears.values():
        parameter = decoder.layers[linear.layer].get_parameter(linear.parameter)
        assert parameter.grad is not None
        torch.testing.assert_close(
            weights[linear.name].grad, linear.view(parameter.grad), rtol=1e-3, atol=1e-3
        )


@every_architecture
def test_statistics_are_those_of_the_modules_inputs(name: str, tokens: Tensor) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    inputs = recorded_inputs(model, decoder, tokens)
    calls = decoder.embed(tokens)
    hidden = calls.hidden
    compared = 0
    for index in range(len(decoder.layers)):
        hidden, sums = decoder.statistics(index, hidden, calls, [TOKENS, SQUARE_SUM, GRAM])
        assert set(sums) == {g.name for g in decoder.groups.values() if g.layer == index}
        for group in sums:
            for linear in decoder.groups[group].linears:
                if linear in inputs:
                    x = inputs[linear]
                    compared += 1
                    assert float(sums[group]["tokens"]) == len(x)
                    torch.testing.assert_close(sums[group]["square_sum"], (x**2).sum(0))
                    torch.testing.assert_close(sums[group]["gram"], x.T @ x, rtol=1e-4, atol=1e-3)
    down = sum("down_proj[" in linear for linear in decoder.linears)
    assert compared == len(decoder.linears) - down


def recorded_inputs(model: nn.Module, decoder: Decoder, tokens: Tensor) -> dict[str, Tensor]:
    """What linear modules, and the first matrices of experts, read: ``[tokens, C_in]``."""
    inputs: dict[str, Tensor] = {}

    def linear_hook(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[name] = args[0].reshape(-1, args[0].shape[-1])

        return hook

    def experts_hook(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            hidden = args[0].reshape(-1, args[0].shape[-1])
            for index in range(4):
                # All experts get all tokens, or those that were chosen for them.
                chosen = len(args) > 1
                routed = hidden[(args[1] == index).any(-1)] if chosen else hidden.chunk(4)[index]
                inputs[f"{name}.gate_up_proj[{index}]"] = routed

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name in decoder.linears:
            handles.append(module.register_forward_pre_hook(linear_hook(name)))
        elif name.endswith(".experts"):
            handles.append(module.register_forward_pre_hook(experts_hook(name)))
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return inputs


@every_architecture
def test_statistics_under_given_weights(name: str, tokens: Tensor) -> None:
    decoder = Decoder.trace(tiny_model(name))
    weights = halved(decoder)
    calls = decoder.embed(tokens)
    given = decoder.statistics(0, calls.hidden, calls, [SQUARE_SUM], weights)
    with decoder.substituted(weights):
        placed = decoder.statistics(0, calls.hidden, calls, [SQUARE_SUM])
    torch.testing.assert_close(given, placed)


@every_architecture
def test_a_saved_model_opens_with_the_substituted_weights(
    name: str, tokens: Tensor, tmp_path: Path
) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    weights = halved(decoder)
    with torch.no_grad():
        given = layer_by_layer(decoder, tokens, weights)
        with decoder.substituted(weights):
            model.save_pretrained(tmp_path)
        opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(opened(tokens).logits, given)
    again = Decoder.trace(opened)
    assert set(again.linears) == set(decoder.linears)
    for linear, weight in weights.items():
        assert torch.equal(again.weight(linear), weight)
