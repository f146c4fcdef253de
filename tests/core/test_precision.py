from __future__ import annotations

import pytest
import torch

from permllm.core.precision import has_bfloat16, upcast


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_upcast_is_float32_or_better_and_the_same_numbers(
    given: torch.dtype, expected: torch.dtype
) -> None:
    tensor = torch.tensor([1.5, -0.25, 3.0], dtype=given)
    assert upcast(tensor).dtype == expected
    assert upcast(tensor).tolist() == [1.5, -0.25, 3.0]


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_processor_has_bfloat16_by_any_of_its_names(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    known = {"avx512_bf16": False, "amx_bf16": False, "bf16": False, "avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert has_bfloat16(torch.device("cpu")) is False
    known[name] = True
    assert has_bfloat16(torch.device("cpu")) is True
    # What it does not know of is no capability.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {}, raising=False)
    assert has_bfloat16(torch.device("cpu")) is False


def test_without_word_of_the_processor_it_is_taken_to_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_bfloat16(torch.device("cpu")) is False


def test_other_devices_are_taken_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True}, raising=False)
    assert has_bfloat16(torch.device("meta")) is False


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_is_asked_without_emulation(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": not native}, raising=False)
    assert has_bfloat16(torch.device("cuda")) is native
