"""Devices and dtypes by their names."""

from __future__ import annotations

import os

import pytest
import torch

from permllm.errors import UserError
from permllm.models import devices
from permllm.models.devices import DTYPES, free_memory, pick_device, pick_dtype
from permllm.testing.device import simulated_device


@pytest.mark.parametrize("mps", [True, False])
def test_auto_takes_what_is_there(mps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with simulated_device():
        assert pick_device("auto") == torch.device("cuda", 0)


def test_a_device_is_called_as_tensors_call_it() -> None:
    with simulated_device():
        device = pick_device("cuda")
        assert torch.zeros(1, device="cuda").device == device != torch.device("cuda")


@pytest.mark.parametrize("name", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"device '{name}' cannot be used"):
        pick_device(name)


def test_auto_keeps_the_saved_dtype_only_where_half_precision_is_quick() -> None:
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) is None
    for name, dtype in DTYPES.items():
        assert pick_dtype(name, torch.device("cpu")) == dtype
        assert str(dtype) == f"torch.{name}"


def test_no_more_threads_than_the_process_was_given_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(devices, "given_cores", lambda: 2)
        pick_device("cpu")
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(devices, "given_cores", lambda: 64)
        pick_device("cpu")
        assert torch.get_num_threads() == 2
        # Who says how many wants so many.
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        monkeypatch.setattr(devices, "given_cores", lambda: 1)
        pick_device("cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_given_cores_are_those_of_the_affinity() -> None:
    assert 1 <= devices.given_cores() <= len(os.sched_getaffinity(0))


def test_free_memory_is_known() -> None:
    assert 10**7 < free_memory(torch.device("cpu")) < 10**14
    assert free_memory(torch.device("meta")) > 10**15
    with simulated_device(1000):
        kept = torch.zeros(100, device="cuda")
        torch.zeros(50, device="cuda")
        # What PyTorch keeps for its next tensors is free.
        assert free_memory(kept.device) == 600
