"""The model card says what a reader needs, and its code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from huggingface_hub import ModelCard

from permllm.exporters.card import front_matter
from permllm.exporters.masked import Masked
from permllm.models.origin import Origin
from permllm.testing.exporters import toy_export
from permllm.testing.models import tiny_model


def test_the_card_says_what_a_reader_needs(tmp_path: Path) -> None:
    Masked().export(toy_export(tiny_model("llama-gqa")), tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for part in (
        "| perplexity/toy | 16.8 | 59.2 |",
        "# a toy model pruned to 2:4 sparsity (lcp)\n",
        "a toy model, pruned to 2:4 sparsity with",
        "Nothing runs this folder sparse",
        "AutoModelForCausalLM.from_pretrained",
        "original order",
        'pattern: "2:4"',
        "- permllm 0.1.0",
    ):
        assert part in card
    assert (tmp_path / "pipeline.yaml").read_text().startswith("permllm: 1")


def test_the_cards_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "path/to/this/folder").mkdir(parents=True)
    Masked().export(toy_export(tiny_model("llama-gqa")), tmp_path / "path/to/this/folder")
    card = (tmp_path / "path/to/this/folder/README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert type(names["model"]).__name__ == "LlamaForCausalLM"


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    origin = Origin("SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M", "apache-2.0")
    context = toy_export(tiny_model("llama-gqa"), origin=origin)
    Masked().export(context, tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M"
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert card.data.tags == ["permllm", "pruning", "sparsity", "2:4"]
    assert "[SmolLM2-135M](https://huggingface.co/HuggingFaceTB/SmolLM2-135M), pruned" in card.text
    unknown = attrs.evolve(context, origin=Origin("toy"))
    data = yaml.safe_load(front_matter(unknown, ["1:4", "2:4"], "permllm").strip("-"))
    assert (data["license"], data["library_name"]) == ("unknown", "permllm")
    assert "base_model" not in data
    assert data["tags"][-2:] == ["1:4", "2:4"]
