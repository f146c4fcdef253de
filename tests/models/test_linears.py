"""Every linear is a matrix, whatever its model calls it."""

from __future__ import annotations

import pytest
import torch

from permllm.models.decoder import Decoder
from permllm.models.linears import biases, replaced_parameters
from permllm.testing.models import tiny_model


def test_a_weight_is_a_view_of_the_parameter() -> None:
    for architecture in ("llama", "gpt2", "gpt-oss"):
        decoder = Decoder.trace(tiny_model(architecture))
        for name, linear in decoder.linears.items():
            decoder.weight(name).fill_(7)
            parameter = decoder.layers[linear.layer].get_parameter(linear.parameter)
            assert (linear.view(parameter) == 7).all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-oss"])
def test_replaced_parameters_hold_the_given_matrices_and_leave_the_rest(architecture: str) -> None:
    decoder = Decoder.trace(tiny_model(architecture))
    linears = [linear for linear in decoder.linears.values() if linear.layer == 0]
    layer, one = decoder.layers[0], linears[-1]
    parameters = dict(layer.named_parameters())
    weight = torch.ones(one.c_out, one.c_in, requires_grad=True)
    others = {name: weight for name in decoder.linears if decoder.linears[name].layer == 1}
    replaced = replaced_parameters(parameters, linears, {one.name: weight, **others})
    assert list(replaced) == [one.parameter]
    new = replaced[one.parameter]
    assert new.shape == parameters[one.parameter].shape
    for linear in linears:
        if linear.parameter == one.parameter:
            expected = weight if linear is one else linear.view(parameters[one.parameter])
            assert torch.equal(linear.view(new), expected)
    (gradient,) = torch.autograd.grad(new.sum(), weight)
    assert torch.equal(gradient, torch.ones_like(weight))


def test_biases_are_those_of_the_rows() -> None:
    for architecture, expected in (
        ("llama", set()),
        ("gpt2", {"attn.c_attn.bias", "attn.c_proj.bias", "mlp.c_fc.bias", "mlp.c_proj.bias"}),
    ):
        decoder = Decoder.trace(tiny_model(architecture))
        layer = decoder.layers[0]
        own = [linear for linear in decoder.linears.values() if linear.layer == 0]
        assert {bias for linear in own for bias in biases(layer, linear)} == expected
    experts = Decoder.trace(tiny_model("gpt-oss"))
    down = experts.linears["model.layers.0.mlp.experts.down_proj[3]"]
    assert biases(experts.layers[0], down) == ["mlp.experts.down_proj_bias"]
