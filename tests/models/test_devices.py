"""Devices and dtypes by their names."""

from __future__ import annotations

import os

import pytest
import torch

from permllm.errors import UserError
from permllm.models import devices
from permllm.models.devices import DTYPES, pick_device, pick_dtype


@pytest.mark.parametrize(
    ("cuda", "mps", "picked"), [(True, True, "cuda"), (False, True, "cpu"), (False, False, "cpu")]
)
def test_auto_takes_what_is_there(
    cuda: bool, mps: bool, picked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == torch.device(picked)


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
