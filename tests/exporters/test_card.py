"""The model card says what a reader needs, and its code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from permllm.exporters.masked import Masked
from permllm.testing.exporters import toy_export
from permllm.testing.models import tiny_model


def test_the_card_says_what_a_reader_needs(tmp_path: Path) -> None:
    Masked().export(toy_export(tiny_model("llama-gqa")), tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for part in (
        "| perplexity/toy | 16.8 | 59.2 |",
        "a toy model, pruned to 2:4 sparsity",
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
