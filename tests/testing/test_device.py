"""The simulated device as a whole: a model trains there as on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from permllm.testing.device import DeviceFault, simulated_device


def gradients(model: nn.Module, inputs: Tensor, recompute: bool) -> list[Tensor]:
    outputs = checkpoint(model, inputs, use_reentrant=False) if recompute else model(inputs)
    loss = outputs.square().mean()
    loss.backward()
    return [loss.detach(), *(one.grad for one in model.parameters() if one.grad is not None)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("halved", [False, True])
def test_forward_and_backward_passes_have_the_bits_of_the_cpu(
    recompute: bool, halved: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    for one in model.parameters():
        nn.init.normal_(one, generator=generator)
    inputs = torch.randn(5, 8, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=halved):
        expected = gradients(copy.deepcopy(model), inputs, recompute)
    with simulated_device() as simulated:
        there = copy.deepcopy(model).to(simulated.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=halved):
            found = gradients(there, inputs.to(simulated.device), recompute)
        assert all(one.is_cuda for one in found)
        assert all(
            torch.equal(one.cpu(), other) for one, other in zip(found, expected, strict=True)
        )
        assert simulated.faults == []
    assert len(found) == len(expected) == 5


def test_the_weights_of_a_device_cannot_meet_inputs_of_the_host() -> None:
    with simulated_device() as simulated:
        model = nn.Linear(8, 4).to(simulated.device)
        with pytest.raises(DeviceFault, match=r"aten::addmm of float32\[4\] on cuda:0, .* on cpu"):
            model(torch.zeros(2, 8))
        assert len(simulated.faults) == 1


def test_nothing_is_simulated_outside_of_the_block() -> None:
    before = torch.cuda.is_available()
    with simulated_device() as simulated:
        tensor = torch.zeros(2, device=simulated.device)
        assert torch.cuda.is_available()
    assert torch.cuda.is_available() == before
    assert tensor.device == torch.device("cpu")
    assert (tensor + torch.zeros(2)).numpy().tolist() == [0.0, 0.0]
