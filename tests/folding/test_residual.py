"""One order for the residual stream, in every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from permllm import UserError
from permllm.folding.residual import find_residual, moved
from permllm.models.decoder import Decoder
from permllm.testing.models import ARCHITECTURES, HIDDEN, VOCABULARY, tiny_model


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_the_model_gives_the_same_in_any_order_of_the_stream(name: str) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    residual = find_residual(decoder)
    seconds = ("o_proj", "out_proj", "attn.c_proj", "dense", "dense_4h_to_h", "fc2", "mlp.c_proj")
    for group in decoder.groups:
        inside = "down_proj" in group or group.endswith((*seconds, "x_proj", "out_proj"))
        assert (group in residual.groups) is not inside
    generator = torch.Generator().manual_seed(7)
    permutation = torch.randperm(HIDDEN, generator=generator)
    tokens = torch.randint(VOCABULARY, (3, 20), generator=generator)
    expected = model(tokens).logits
    for key, parameter in model.named_parameters():
        parameter.data = moved(parameter.data, residual.axes.get(key, ()), permutation)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    # And it is the stream that was moved, not merely something.
    assert not torch.equal(
        decoder.embed(tokens).hidden[..., 0], decoder.embed(tokens).hidden[..., 1]
    )
    assert len(residual.axes) >= 12


class Uneven(nn.Module):
    """Treats each channel otherwise, without a parameter that says so."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return self.inner(x, *args) * torch.arange(1, HIDDEN + 1)


def refused(change: Any) -> str:
    model = tiny_model("llama")
    change(model)
    with pytest.raises(UserError) as caught:
        find_residual(Decoder.trace(model))
    return str(caught.value)


def test_the_part_that_does_not_follow_is_named() -> None:
    def norm(model: Any) -> None:
        model.model.norm = Uneven(model.model.norm)

    def layer(model: Any) -> None:
        model.model.layers[1].input_layernorm = Uneven(model.model.layers[1].input_layernorm)

    def embedding(model: Any) -> None:
        inner = model.model.embed_tokens
        inner.register_forward_hook(lambda module, args, out: out * torch.arange(1, HIDDEN + 1))

    assert "what stands after the layers does not follow" in refused(norm)
    assert "model.layers.1 does not follow" in refused(layer)
    assert "what stands before the layers does not follow" in refused(embedding)


def test_a_writer_that_mixes_channels_is_named() -> None:
    def writer(model: Any) -> None:
        for block in model.model.layers:
            block.mlp.register_forward_hook(lambda module, args, out: out + out.roll(1, -1))

    assert "model.layers.0.mlp.down_proj writes to the residual stream, but not" in refused(writer)
