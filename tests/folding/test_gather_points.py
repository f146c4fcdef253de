"""Inputs are gathered once where one module makes them, and at each linear otherwise."""

from __future__ import annotations

import torch

from permllm.folding.gather_points import gather_points
from permllm.folding.layout import Layout
from permllm.models.decoder import Decoder
from permllm.testing.models import tiny_model

TITLE = "model.layers.1"


def orders(decoder: Decoder) -> dict[str, torch.Tensor]:
    return {
        name: torch.arange(group.channels).flip(0)
        for name, group in decoder.groups.items()
        if group.layer == 1
    }


def test_a_norm_gathers_for_all_that_read_it(llama: Layout) -> None:
    points = gather_points(llama.decoder, 1, orders(llama.decoder))
    qkv, mlp = (
        f"{TITLE}:{','.join(names)}"
        for names in (
            [f"self_attn.{part}_proj" for part in "qkv"],
            ["mlp.gate_proj", "mlp.up_proj"],
        )
    )
    assert points[qkv] == (f"{TITLE}.input_layernorm",)
    assert points[mlp] == (f"{TITLE}.post_attention_layernorm",)
    # What attention and the product of gate and up give is no module's output.
    for linear in ("self_attn.o_proj", "mlp.down_proj"):
        assert points[f"{TITLE}:{linear}"] == (f"{TITLE}.{linear}",)


def test_a_norm_that_others_read_too_does_not_gather() -> None:
    """Here attention hands it on as well, so that its order would show."""
    model = tiny_model("llama")
    layer = model.model.layers[1]
    norm, attention = layer.input_layernorm, layer.self_attn
    attention.register_forward_hook(
        lambda module, args, kwargs, output: (output[0] + kwargs["hidden_states"], *output[1:]),
        with_kwargs=True,
    )
    decoder = Decoder.trace(model)
    (name,) = (one for one in decoder.groups if one.startswith(TITLE) and "q_proj" in one)
    points = gather_points(decoder, 1, {name: orders(decoder)[name]})
    assert points == {name: decoder.groups[name].linears}
    assert not norm._forward_hooks


def test_slices_of_experts_have_no_place() -> None:
    decoder = Decoder.trace(tiny_model("mixtral"))
    points = gather_points(decoder, 1, orders(decoder))
    assert points[f"{TITLE}:mlp.experts.down_proj[0]"] is None
    assert points[f"{TITLE}:self_attn.o_proj"] == (f"{TITLE}.self_attn.o_proj",)
