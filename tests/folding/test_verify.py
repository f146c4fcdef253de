"""Folds hold in a layer with its own weights, or are given up."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from permllm.folding.fold import Fold, NoFold
from permllm.folding.layout import Layout
from permllm.folding.verify import prove


class Uneven(nn.Module):
    """An activation that treats each channel otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) * torch.arange(1, x.shape[-1] + 1)


def test_every_layer_is_proved(with_activation) -> None:
    """The second layer looks like the first, and is not."""
    folds = with_activation(Uneven(), slice(1, 2))
    assert isinstance(folds["model.layers.0:mlp.down_proj"], Fold)
    fold = folds["model.layers.1:mlp.down_proj"]
    assert isinstance(fold, NoFold)
    assert "with its producers' rows moved, the input of mlp.down_proj is another" in fold.reason
    assert isinstance(folds["model.layers.1:self_attn.o_proj"], Fold)


def test_only_the_orders_that_fail_are_given_up(llama: Layout) -> None:
    """One of two groups claims the rows of another linear than those that make its channels."""
    folds = {name: fold for name, fold in llama.folds([0]).items() if isinstance(fold, Fold)}
    wrong, right = "model.layers.0:mlp.down_proj", "model.layers.0:self_attn.o_proj"
    folds[wrong] = attrs.evolve(folds[wrong], producers=folds[wrong].producers[:1])
    proved = prove(llama.decoder, 0, folds)
    assert isinstance(proved[right], Fold)
    given_up = proved[wrong]
    assert isinstance(given_up, NoFold)
    assert "is another" in given_up.reason
    # In the original order nothing moves, so that nothing is wrong.
    order = torch.arange(llama.decoder.groups[wrong].channels)
    assert isinstance(prove(llama.decoder, 0, folds, {wrong: order})[wrong], Fold)
