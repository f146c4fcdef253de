"""The rows that make the channels of an input, and the channels that can be exchanged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from permllm.folding.fold import Fold, NoFold


class Mixing(nn.Module):
    """An activation in which each channel depends on its neighbour as well."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) + x.roll(1, -1)


class Uneven(nn.Module):
    """An activation that treats each channel otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) * torch.arange(1, x.shape[-1] + 1)


class Halves(nn.Module):
    """An activation that is another for the second half of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([nn.functional.silu(first), nn.functional.gelu(second)], -1)


def test_channels_that_share_rows(with_activation) -> None:
    fold = with_activation(Mixing())["model.layers.0:mlp.down_proj"]
    assert isinstance(fold, NoFold)
    assert "take part in channels" in fold.reason


def test_channels_that_cannot_be_exchanged(with_activation) -> None:
    fold = with_activation(Uneven())["model.layers.0:mlp.down_proj"]
    assert isinstance(fold, Fold)
    assert fold.segments == (1,) * 48


def test_segments_are_what_can_be_exchanged(with_activation) -> None:
    fold = with_activation(Halves())["model.layers.0:mlp.down_proj"]
    assert isinstance(fold, Fold)
    assert fold.segments == (24, 24)
