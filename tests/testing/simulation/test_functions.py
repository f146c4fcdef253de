"""Above autograd: tensors say where they are, go where they are told, and leave only as copies."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from permllm.testing.device import DeviceFault, simulated_device

THERE, HERE = torch.device("cuda", 0), torch.device("cpu")


def test_tensors_are_where_they_are_told_to_be() -> None:
    with simulated_device() as simulated:
        made = {
            "full": torch.full((2,), 1.0, device="cuda"),
            "tensor": torch.tensor([1, 2], device=THERE),
            "as_tensor": torch.as_tensor(np.ones(2), device="cuda"),
            "new": torch.zeros(2, device="cuda").new_ones(2),
            "new_tensor": torch.zeros(2, device="cuda").new_tensor([1.0]),
            "like": torch.zeros_like(torch.zeros(2), device="cuda"),
            "cuda": torch.zeros(2).cuda(),
            "index": torch.zeros(2).to(0),
            "other": torch.zeros(2).to(torch.zeros(1, device="cuda")),
        }
        assert {name: one.device for name, one in made.items()} == dict.fromkeys(made, THERE)
        assert all(
            one.is_cuda and not one.is_cpu and one.get_device() == 0 for one in made.values()
        )
        back = [torch.zeros_like(made["full"], device="cpu"), made["full"].cpu()]
        assert [one.device for one in back] == [HERE, HERE]
        with torch.device(simulated.device):
            assert torch.zeros(2).device == THERE
        with pytest.raises(DeviceFault, match="invalid device ordinal"):
            torch.zeros(2, device="cuda:1")


def test_a_tensor_that_is_there_already_is_not_copied() -> None:
    with simulated_device():
        tensor = torch.zeros(2, device="cuda")
        assert tensor.to("cuda") is tensor.to(THERE, torch.float32) is tensor.cuda() is tensor
        assert tensor.to("cuda", copy=True).data_ptr() != tensor.data_ptr()
        assert tensor.to(torch.float64).device == THERE


def test_copies_of_modules_and_tensors_stay_there() -> None:
    with simulated_device() as simulated:
        model = nn.Linear(2, 2).to(simulated.device)
        both = copy.deepcopy([model.weight, torch.zeros(2, device="cuda")])
        assert [one.device for one in both] == [THERE, THERE]
        assert model.cpu().weight.device == HERE


def test_a_gradient_goes_back_the_way_that_the_tensor_came() -> None:
    with simulated_device():
        weight = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
        weight.to("cuda", torch.float32).square().sum().backward()
        assert weight.grad is not None
        assert (weight.grad.device, weight.grad.dtype) == (HERE, torch.bfloat16)


def test_numpy_takes_what_is_on_the_host_only() -> None:
    with simulated_device() as simulated:
        tensor = torch.arange(3, device="cuda")
        with pytest.raises(DeviceFault, match=r"to numpy.*int64\[3\] on cuda:0"):
            tensor.numpy()
        with pytest.raises(DeviceFault, match="to numpy"):
            np.asarray(tensor)
        assert np.asarray(tensor.cpu()).tolist() == [0, 1, 2]
        assert len(simulated.faults) == 2


def test_random_numbers_want_a_generator_of_their_device() -> None:
    with simulated_device():
        there, here = torch.Generator("cuda"), torch.Generator()
        drawn = torch.rand(3, generator=there.manual_seed(1), device="cuda")
        assert drawn.device == THERE
        assert torch.equal(drawn.cpu(), torch.rand(3, generator=here.manual_seed(1)))
        for device, wrong in (("cuda", here), ("cpu", there)):
            with pytest.raises(DeviceFault, match=f"'{device}' device type for generator.*rand"):
                torch.rand(3, generator=wrong, device=device)
