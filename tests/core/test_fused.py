"""Kernels are used where they run, and what does not run is done without."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from permllm.core import fused

GPU = torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two GPUs, the second the current one, and Triton."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", {0: (7, 5), 1: (8, 0)}.__getitem__)
    monkeypatch.setattr(fused, "find_spec", {"triton": ModuleType("triton")}.__getitem__)
    monkeypatch.setattr(fused, "_try", lambda device: None)
    fused._run.cache_clear()
    yield
    fused._run.cache_clear()


def test_a_gpu_with_triton_has_them() -> None:
    assert fused.has_fused_kernels(GPU)
    assert fused.has_fused_kernels(torch.device("cuda"))


def test_other_devices_and_older_gpus_have_not() -> None:
    assert not fused.has_fused_kernels(torch.device("cpu"))
    assert not fused.has_fused_kernels(torch.device("cuda", 0))


def test_without_triton_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    assert not fused.has_fused_kernels(GPU)


def test_without_cuda_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not fused.has_fused_kernels(GPU)


def test_what_does_not_run_is_said_once_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(device: torch.device) -> None:
        tried.append(device)
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(fused, "_try", refuse)
    with pytest.warns(RuntimeWarning, match=r"on cuda:1, .*: Failed to find C compiler\.$"):
        assert not fused.has_fused_kernels(GPU)
    assert not fused.has_fused_kernels(GPU)
    assert tried == [GPU]
