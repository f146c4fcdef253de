"""Bytes are those of storages that are alive, and a limit holds."""

from __future__ import annotations

import pytest
import torch

from permllm.exhaustion import asked_for, out_of_memory
from permllm.testing.device import simulated_device


def test_storages_count_and_not_views() -> None:
    with simulated_device() as simulated:
        tensor = torch.zeros(10, 4, device="cuda")
        views = [tensor[3], tensor.T, tensor.detach(), tensor.view(40)]
        assert simulated.live_bytes == 160
        del tensor
        assert simulated.live_bytes == 160
        del views
        assert simulated.live_bytes == 0
        assert simulated.peak_bytes == 160


def test_the_peak_is_what_was_there_at_once() -> None:
    with simulated_device() as simulated:
        for _ in range(3):
            torch.zeros(100, device="cuda")
        assert simulated.peak_bytes == 400
        one = torch.zeros(100, device="cuda")
        two = one + 1
        assert simulated.peak_bytes == simulated.live_bytes == one.nbytes + two.nbytes


def test_what_is_on_the_host_takes_nothing() -> None:
    with simulated_device() as simulated:
        kept = torch.zeros(100) + 1
        assert simulated.live_bytes == simulated.peak_bytes == 0
        assert len(kept) == 100


def test_a_limit_raises_what_cuda_raises() -> None:
    with simulated_device(1000) as simulated:
        tensor = torch.zeros(200, device="cuda")
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") as caught:
            tensor + 1
        assert out_of_memory(caught.value)
        assert asked_for(torch.OutOfMemoryError("Tried to allocate 3221225472 bytes")) == "3.0 GiB"
        assert asked_for(caught.value) == "0.0 MiB"
        assert simulated.live_bytes == 800
        del tensor, caught
        assert len(torch.zeros(250, device="cuda")) == 250


def test_gradients_and_what_is_saved_for_them_count() -> None:
    with simulated_device() as simulated:
        weight = torch.ones(100, device="cuda", requires_grad=True)
        loss = weight.square().exp().sum()
        # The squares are kept by none, their exponentials for the backward pass.
        assert simulated.live_bytes == 400 + 400 + 4
        loss.backward()
        del loss
        assert simulated.live_bytes == 400 + 400
        assert weight.grad is not None
