"""What is computed of a model when it is built is rounded alike before and after an export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import permllm
from permllm.exporters.permuted import Permuted
from permllm.models.linears import Group
from permllm.testing.exporters import pruned_export
from permllm.testing.models import tiny_model


def original(name: str, group: Group) -> Tensor:
    """Nothing is gathered, so that transformers opens the folder."""
    return torch.arange(group.channels)


def backwards(name: str, group: Group) -> Tensor:
    """Something is gathered, so that the model is built without its weights."""
    return torch.arange(group.channels).flip(0)


@pytest.mark.parametrize("order", [original, backwards])
@pytest.mark.parametrize(
    ("opened_in", "saved_in"),
    [("float32", "bfloat16"), ("bfloat16", None), ("bfloat16", "float32")],
)
def test_buffers_that_are_in_no_file(
    order: Callable[[str, Group], Tensor], opened_in: str, saved_in: str | None, tmp_path: Path
) -> None:
    """Gemma 3's embeddings have a factor, the root of their width, in the model's dtype."""
    config = tiny_model("gemma3").config
    config.hidden_size = 48  # Its root is rounded by a thousandth in bfloat16.
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    dtype = getattr(torch, opened_in)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=dtype).eval()
    folder = tmp_path / "export"
    folder.mkdir()
    # This checks the logits as well.
    Permuted(dtype=saved_in).export(pruned_export(model, order), folder)
    opened = permllm.load(folder, dtype=dtype).model
    factor = opened.get_input_embeddings().embed_scale
    assert torch.equal(factor, model.get_input_embeddings().embed_scale)
