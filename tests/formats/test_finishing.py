"""An export stands only if it is right, and computes what the pruned model does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from permllm.contexts.export import ExportContext
from permllm.errors import RunFailed
from permllm.exporters.writing import write_config
from permllm.formats import finishing
from permllm.formats.export_files import write_shards
from permllm.formats.finishing import finish
from permllm.formats.manifest import MANIFEST, Manifest
from permllm.formats.stored import stored_tensors
from permllm.testing.exporters import pruned_export
from permllm.testing.models import tiny_model

Change = Callable[[str, Tensor], Tensor]


@pytest.fixture(scope="module")
def context() -> ExportContext:
    generator = torch.Generator().manual_seed(0)
    return pruned_export(
        tiny_model("llama-gqa"),
        lambda name, group: torch.randperm(group.channels, generator=generator),
    )


def finished(
    context: ExportContext, folder: Path, change: Change = lambda name, tensor: tensor
) -> Manifest:
    """Write the model's tensors, changed, without an exporter, and finish."""
    tensors = list(stored_tensors(context.decoder, context.storage, context.patterns))
    held = {one.name: (one.pattern, one.axis) for one in tensors if one.pattern is not None}
    write_config(context.model, folder, None)
    context.tokenizer.save_pretrained(folder)
    write_shards(folder, ((one.name, change(one.name, one.tensor).clone()) for one in tensors))
    return finish(
        folder, "permuted", context.decoder, context.storage, context.patterns, held, None
    )


def test_a_right_one_is_described(context: ExportContext, tmp_path: Path) -> None:
    manifest = finished(context, tmp_path)
    assert (tmp_path / MANIFEST).exists()
    assert {group.name for group in manifest.groups} == set(context.decoder.groups)
    assert {group.pattern for group in manifest.groups} == {"2:4"}
    pruned = [name for name, entry in manifest.tensors.items() if entry.pattern == "2:4"]
    assert len(pruned) == len(context.patterns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, one: one + 1 if "layers.1.mlp.down" in name else one, "down_proj.*not 2:4"),
        (lambda name, one: one * float("nan") if name == "model.norm.weight" else one, "norm.*NaN"),
        (
            lambda name, one: one.roll(1) if name.endswith("permllm_order") else one,
            "does not compute what the pruned model does",
        ),
    ],
    ids=["dense", "nan", "order"],
)
def test_a_wrong_one_has_no_manifest(
    context: ExportContext, tmp_path: Path, change: Change, message: str
) -> None:
    with pytest.raises(RunFailed, match=message):
        finished(context, tmp_path, change)
    assert not (tmp_path / MANIFEST).exists()


def test_one_that_cannot_be_opened_has_no_manifest(
    context: ExportContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(finishing, "load", broken)
    with pytest.raises(KeyboardInterrupt):
        finished(context, tmp_path)
    assert not (tmp_path / MANIFEST).exists()
