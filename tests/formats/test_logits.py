"""Logits that are recorded, and how far others may be from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import permllm
from permllm.formats.logits import compare_logits, compare_recorded, float32_logits, record_logits
from permllm.formats.manifest import read_manifest
from permllm.testing.models import tiny_model


def test_the_recorded_logits_are_the_models(export: Path) -> None:
    manifest = read_manifest(export)
    model = permllm.load(export).model
    tokens = torch.tensor(manifest.logits.tokens)
    logits = float32_logits(model, tokens)
    assert compare_recorded(manifest.logits, logits).holds
    assert not compare_recorded(manifest.logits, logits + 0.01 * logits.abs().max()).holds
    assert not compare_recorded(manifest.logits, logits * float("nan")).holds
    assert not compare_recorded(manifest.logits, logits[..., :4]).holds
    other = tiny_model("llama-gqa", seed=1)
    assert compare_recorded(manifest.logits, float32_logits(other, tokens)).argmax < 0.5


def test_agreement_of_logits() -> None:
    expected = torch.tensor([[[1.0, 3.0, 2.0], [0.0, -4.0, 1.0]]])
    assert compare_logits(expected, expected).holds
    other = torch.tensor([[[1.0, 3.0, 2.0], [1.2, -4.0, 1.0]]])
    found = compare_logits(expected, other)
    assert found.difference == pytest.approx(0.3)
    assert found.argmax == 0.5
    assert not found.holds
    assert compare_logits(expected, expected[:, :1]).argmax == 0
    entry = record_logits(torch.zeros(1, 2, dtype=torch.long), expected)
    assert entry.largest == 4.0
    assert compare_recorded(entry, expected).holds
    # Equally likely tokens are no disagreement.
    tied = torch.tensor([[[2.0, 2.0]]])
    assert compare_logits(tied, torch.tensor([[[2.0, 2.0 + 1e-6]]])).holds
