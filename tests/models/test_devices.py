"""Devices and dtypes by their names."""

from __future__ import annotations

import pytest
import torch

from permllm.errors import UserError
from permllm.models.devices import DTYPES, pick_device, pick_dtype


@pytest.mark.parametrize(
    ("cuda", "mps", "picked"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
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
