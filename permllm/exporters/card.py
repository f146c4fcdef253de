"""The model card: README.md of an exported model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from permllm.contexts.export import ExportContext

LOADING = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""
"""For folders that transformers opens by itself."""

LOADING_PERMLLM = """\
import permllm
loaded = permllm.load("path/to/this/folder")
model, tokenizer = loaded.model, loaded.tokenizer"""
"""For folders that it does not."""


def model_card(context: ExportContext, about: str, loading: str = LOADING) -> str:
    """The card in Markdown.

    Args:
        context: the exported model with its figures.
        about: what the format of the export means, in a few sentences.
        loading: the code that opens it.
    """
    patterns = sorted({report.pattern for report in context.result.layers})
    sections = [
        FRONT_MATTER,
        f"# {context.label}",
        f"{context.model_description}, pruned to {' and '.join(patterns) or 'N:M'} sparsity "
        "with [permllm](https://arxiv.org/abs/2510.10136).",
        "## Figures",
        figures_table(context.dense.figures, context.result.figures),
        "## Loading",
        f"```python\n{loading}\n```",
        "## Format",
        about,
        "## Pipeline",
        f"```yaml\n{context.pipeline_yaml.strip()}\n```",
        "## Versions",
        "\n".join(f"- {name} {version}" for name, version in sorted(context.versions.items())),
    ]
    return "\n\n".join(sections) + "\n"


FRONT_MATTER = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [permllm, pruning, sparsity]
---"""
"""What the Hugging Face hub reads of a card."""


def figures_table(dense: dict[str, float], pruned: dict[str, float]) -> str:
    """A Markdown table of the dense and the pruned model's figures.

    >>> print(figures_table({"perplexity/a": 16.8}, {"perplexity/a": 59.25, "retained": 0.8}))
    | figure | dense | pruned |
    | --- | ---: | ---: |
    | perplexity/a | 16.8 | 59.25 |
    | retained | – | 0.8 |
    """
    lines = ["| figure | dense | pruned |", "| --- | ---: | ---: |"]
    for name in dict.fromkeys((*dense, *pruned)):
        before, after = (
            f"{figures[name]:.5g}" if name in figures else "–" for figures in (dense, pruned)
        )
        lines.append(f"| {name} | {before} | {after} |")
    return "\n".join(lines)
