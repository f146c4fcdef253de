"""The model card: README.md of an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from permllm.contexts.export import ExportContext

LOADING = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""
"""For folders that transformers opens by itself."""

LOADING_PERMLLM = """\
import permllm  # by which transformers opens this folder
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")"""
"""For folders that it opens once permllm is imported."""


NOT_SPARSE = """\
Nothing runs this folder sparse. Exported as `permuted` or `sparse` (`permllm export RUN --format
permuted`), the same model is N:M as it is stored."""
"""Of weights in the original order."""

SPARSE = """\
```python
import permllm
loaded = permllm.load("path/to/this/folder", sparse=True)
print(loaded.linears)
```

`loaded.linears` says of each pruned linear how it runs and, where it stays dense, why. It gains
speed on x86 CPUs with AVX2 or AVX-512 in decoding, and on NVIDIA GPUs from compute capability 8.0
(2:4 in float16 or bfloat16) for many tokens at once. Servers such as vLLM, SGLang and llama.cpp
run 2:4 as dense."""
"""Of weights that hold their pattern as they are stored."""


def model_card(
    context: ExportContext, about: str, loading: str = LOADING, sparse: str = SPARSE
) -> str:
    """The card in Markdown.

    Args:
        context: the exported model with its figures.
        about: what the format of the export means, in a few sentences.
        loading: the code that opens it.
        sparse: where and how it runs sparse.
    """
    origin = context.origin
    patterns = sorted({report.pattern for report in context.result.layers})
    sparsity = f"{' and '.join(patterns) or 'N:M'} sparsity"
    hub = f"[{origin.name}](https://huggingface.co/{origin.hub})"
    sections = [
        front_matter(context, patterns, "transformers" if loading == LOADING else "permllm"),
        f"# {origin.name} pruned to {sparsity} ({context.label})",
        f"{hub if origin.hub else origin.name}, pruned to {sparsity} "
        "with [permllm](https://arxiv.org/abs/2510.10136).",
        "## Figures",
        figures_table(context.dense.figures, context.result.figures),
        "## Loading",
        f"```python\n{loading}\n```",
        "## Running it sparse",
        sparse,
        "## Format",
        about,
        "## Pipeline",
        f"```yaml\n{context.pipeline_yaml.strip()}\n```",
        "## Versions",
        "\n".join(f"- {name} {version}" for name, version in sorted(context.versions.items())),
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(context: ExportContext, patterns: Sequence[str], library: str) -> str:
    """What the Hugging Face hub reads of a card; a licence that is not known is said to be that."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=context.origin.hub,
        library_name=library,
        license=context.origin.licence or "unknown",
        pipeline_tag="text-generation",
        tags=["permllm", "pruning", "sparsity", *patterns],
    )
    return f"---\n{data.to_yaml()}\n---"


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
