"""Below autograd: results are where their operands are, and copies and waiting are counted."""

from __future__ import annotations

import pytest
import torch

from permllm.testing.device import DeviceFault, simulated_device


def test_results_are_where_their_operands_are() -> None:
    with simulated_device():
        there, here = torch.ones(4, device="cuda"), torch.ones(4)
        for tensor in (
            there * 2,
            there * torch.tensor(2.0),
            there[torch.tensor([0, 1])],
            torch.nn.functional.one_hot(there.long()),
            torch.stack([there, there]).sort(descending=True).values,
            torch.vmap(lambda one: one * 2)(there),
            torch.func.grad(lambda one: one.square().sum())(there),
        ):
            assert tensor.device == torch.device("cuda", 0)
        for tensor in (here * 2, here[:2], here.copy_(there)):
            assert tensor.device == torch.device("cpu")


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: there @ here.T,
        lambda there, here: here[there[0].long()],
        lambda there, here: here.add_(there),
        lambda there, here: torch.where(there > 0, there, here),
        lambda there, here: torch.equal(there, here),
        lambda there, here: there.gather(0, here.long()),
    ],
)
def test_mixing_is_refused_and_noted(mix) -> None:
    with simulated_device() as simulated:
        there, here = torch.ones(4, 4, device="cuda"), torch.ones(4, 4)
        with pytest.raises(DeviceFault, match=r"aten::\w+ of .*\[4.* on cuda:0, .*on cpu|on cpu, "):
            mix(there, here)
        assert len(simulated.faults) == 1


def test_copies_count_in_the_type_of_the_device() -> None:
    with simulated_device() as simulated:
        there = torch.zeros(10, dtype=torch.bfloat16).to("cuda", torch.float32)
        assert simulated.copied_to_device == 40
        there.copy_(torch.zeros(10))
        assert simulated.copied_to_device == 80
        there.bfloat16().cpu()
        assert simulated.copied_to_host == 20
        torch.zeros(10).copy_(there)
        assert simulated.copied_to_host == 60
        assert simulated.copied_to_device == 80
        there.to("cuda"), there.clone(), there.float()
        assert (simulated.copied_to_device, simulated.copied_to_host) == (80, 60)


def test_waiting_is_counted() -> None:
    with simulated_device() as simulated:
        there = torch.ones(3, device="cuda")
        for read in (
            lambda: there.sum().item(),
            lambda: float(there[0]),
            lambda: bool(there.all()),
            lambda: there.tolist(),
            lambda: there.cpu(),
            lambda: there[there > 0],
            lambda: there.nonzero(),
            torch.cuda.synchronize,
        ):
            before = simulated.synchronisations
            read()
            assert simulated.synchronisations == before + 1
        there * 2, torch.ones(3).tolist(), torch.ones(3).sum().item()
        assert simulated.synchronisations == before + 1
