"""Serving: right figures of a tiny model, and what fails in another process is said here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from permllm.errors import UserError
from permllm.formats.serving import Load, Subject, held, measure
from permllm.models.sources import DirectorySource
from permllm.testing.models import save_tiny, tiny_model


def test_a_model_is_measured_in_its_process(tmp_path: Path) -> None:
    source = DirectorySource(save_tiny("llama", tmp_path / "model"))
    work = Load(prefill=16, decode=3, rounds=2, vocabulary=257)
    (cost,) = measure([Subject("dense", source)], work)
    model = tiny_model("llama")
    with torch.no_grad():
        expected = model(input_ids=work.prompt()).logits
    torch.testing.assert_close(cost.logits, expected, rtol=1e-4, atol=1e-4)
    assert cost.weight_bytes == held(model)
    assert cost.process_bytes > cost.weight_bytes
    assert min(cost.load_seconds, cost.prefill_speed, cost.decode_speed) > 0
    assert cost.packed == 0


def test_what_fails_there_is_said_here(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: there is no model folder"):
        measure([Subject("gone", DirectorySource(tmp_path / "none"))], Load())


def test_tied_weights_count_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert held(model) == (16 + 4) * 4
