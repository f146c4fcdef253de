"""What an exporter gets: weights by name, and storage that is worked out once."""

from __future__ import annotations

import pytest
import torch

from permllm.core.patterns import is_nm
from permllm.testing.exporters import pruned_export
from permllm.testing.models import tiny_model


def test_the_storage_is_planned_once_for_all_exporters() -> None:
    context = pruned_export(
        tiny_model("llama"), lambda name, group: torch.arange(group.channels).flip(0)
    )
    assert context.storage is context.storage
    assert {group.name for group in context.storage.groups} == set(context.permutations)
    assert context.storage.counts["stored"] == 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama4"])
def test_weights_are_had_by_name_however_the_model_stores_them(name: str) -> None:
    """Transposed, as GPT-2's are, or stacked, as experts are."""
    context = pruned_export(
        tiny_model(name), lambda name, group: torch.arange(group.channels).flip(0)
    )
    for linear, pattern in context.patterns.items():
        permutation = context.permutations[context.group_of(linear)]
        assert is_nm(context.weight(linear)[:, permutation], pattern)
