"""``torch.cuda`` and autocast answer for the simulated device."""

from __future__ import annotations

import torch

from permllm.testing.device import simulated_device


def test_memory_that_pytorch_keeps_is_not_free() -> None:
    with simulated_device(1000):
        assert torch.cuda.mem_get_info() == (1000, 1000)
        kept = torch.zeros(100, device="cuda")
        torch.zeros(100, device="cuda")
        assert torch.cuda.mem_get_info("cuda") == (200, 1000)
        assert (torch.cuda.memory_reserved(), torch.cuda.memory_allocated()) == (800, kept.nbytes)
        torch.cuda.empty_cache()
        assert torch.cuda.mem_get_info() == (600, 1000)
        assert torch.cuda.max_memory_allocated() == 800
        torch.cuda.reset_peak_memory_stats()
        assert torch.cuda.max_memory_allocated() == 400


def test_there_is_one_device() -> None:
    with simulated_device():
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 1
        assert torch.cuda.get_device_name(0) == "simulated"


def test_autocast_of_the_device_rounds() -> None:
    with simulated_device():
        one = torch.ones(2, 2, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            assert torch.is_autocast_enabled("cuda")
            assert torch.get_autocast_dtype("cuda") == torch.bfloat16
            assert (one @ one).dtype == torch.bfloat16
        assert not torch.is_autocast_enabled("cuda")
        assert (one @ one).dtype == torch.float32


def test_seeding_and_forking_go_on_working() -> None:
    with simulated_device(), torch.random.fork_rng(devices=[0]):
        torch.manual_seed(3)
        first = torch.rand(2, device="cuda")
        torch.manual_seed(3)
        assert torch.equal(first, torch.rand(2, device="cuda"))
