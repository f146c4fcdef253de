"""What an exporter gets: the storage of its permutations is worked out once."""

from __future__ import annotations

import torch

from permllm.testing.exporters import pruned_export
from permllm.testing.models import tiny_model


def test_the_storage_is_planned_once_for_all_exporters() -> None:
    context = pruned_export(
        tiny_model("llama"), lambda name, group: torch.arange(group.channels).flip(0)
    )
    assert context.storage is context.storage
    assert {group.name for group in context.storage.groups} == set(context.permutations)
    assert context.storage.counts["stored"] == 0
