"""Gathers put channels in order at run time, and move with the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import permllm
from permllm import UserError
from permllm.files import read_sealed, write_sealed
from permllm.formats.gathers import BUFFER, attach_gather, attach_gathers
from permllm.formats.manifest import MANIFEST


def test_a_gather_at_a_module_that_is_not_there(copy: Path) -> None:
    path = copy / MANIFEST
    data = read_sealed(path)
    place = next(group for group in data["groups"] if group["at"])
    place["at"] = ["model.layers.7.norm"]
    write_sealed(path, data)
    with pytest.raises(UserError, match=r"no module 'model.layers.7.norm'"):
        permllm.load(copy)


@pytest.mark.parametrize("inputs", [True, False])
def test_a_gather_is_an_index_that_moves_with_its_module(inputs: bool) -> None:
    linear = nn.Linear(3, 3, bias=False).requires_grad_(False)
    order, x = torch.tensor([2, 0, 1]), torch.randn(2, 3)
    plain = linear(x)
    expected = linear(x[:, order]) if inputs else plain[:, order]
    attach_gather(linear, order, inputs=inputs)
    assert torch.equal(linear(x), expected)
    assert torch.equal(linear.state_dict()[BUFFER], order)
    assert linear.double()(x.double()).dtype == torch.float64
    assert linear.state_dict()[BUFFER].dtype == torch.long


def test_gathers_that_are_to_be_filled_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).requires_grad_(False)
    x = torch.randn(2, 3)
    before = model(x)
    attach_gathers(model, {"0": False, "1": True}, {"0": 4, "1": 4})
    assert torch.equal(model(x), before)
    assert {key for key in model.state_dict() if BUFFER in key} == {f"0.{BUFFER}", f"1.{BUFFER}"}
