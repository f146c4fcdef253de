"""Tiny models are the same each time, and are saved with a tokenizer that fits them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from permllm.models.checks import check_tokenizer
from permllm.models.loading import load
from permllm.models.sources import DirectorySource
from permllm.testing.models import ARCHITECTURES, HIDDEN, VOCABULARY, save_tiny, tiny_model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_the_sizes_that_tests_count_on(name: str) -> None:
    model = tiny_model(name)
    assert tuple(model.get_input_embeddings().weight.shape) == (VOCABULARY, HIDDEN)
    assert not model.training
    again, other = tiny_model(name), tiny_model(name, seed=1)
    pairs = list(zip(model.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two in pairs)
    assert any(
        not torch.equal(one, two)
        for one, two in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_a_saved_one_loads_as_it_was_made(tmp_path: Path) -> None:
    loaded = load(DirectorySource(save_tiny("llama", tmp_path)), torch.float32)
    check_tokenizer(loaded.tokenizer, loaded.model)
    state, expected = loaded.model.state_dict(), tiny_model("llama").state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
