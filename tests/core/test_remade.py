"""Tensors that are made anew: the same each time, one at a time, with the same gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from permllm.core import remade
from permllm.core.remade import Remade, in_pieces
from permllm.core.sinkhorn import sinkhorn


def test_tensors_are_made_when_they_are_asked_for_and_not_before() -> None:
    made: list[str] = []

    def make(name: str, factor: Tensor) -> Tensor:
        made.append(name)
        return factor * len(name)

    tensors = Remade(("a", "bcd"), make, (torch.tensor(2.0),))
    assert list(tensors) == ["a", "bcd"]
    assert len(tensors) == 2
    assert "a" in tensors
    assert "e" not in tensors
    assert made == []
    assert tensors["bcd"] == 6
    assert tensors["bcd"] is not tensors["bcd"]
    assert made == ["bcd"] * 3
    with pytest.raises(KeyError, match="e"):
        tensors["e"]
    assert tensors.get("e") is None


@given(blocks=st.integers(1, 9), size=st.integers(2, 5), piece=st.integers(1, 60))
def test_pieces_give_the_same_bits_forward_and_backward(blocks: int, size: int, piece: int) -> None:
    generator = torch.Generator().manual_seed(blocks)
    logits, gradient = torch.randn(2, blocks, size, size, generator=generator)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remade, "PIECE", piece)
        for whole in (True, False):
            own = logits.clone().requires_grad_()
            soft = sinkhorn(own, 0.5, 3) if whole else in_pieces(_soften, own)
            soft.backward(gradient)
            assert own.grad is not None
            found.append((soft.detach(), own.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def _soften(logits: Tensor) -> Tensor:
    return sinkhorn(logits, 0.5, 3)


def test_nothing_inside_of_pieces_is_kept() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    logits = torch.randn(8, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        in_pieces(_soften, logits)
    own = logits.untyped_storage().data_ptr()
    assert all(one.untyped_storage().data_ptr() == own for one in kept if one.numel())
