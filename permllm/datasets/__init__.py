"""Sources of text, and how text becomes sequences of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from permllm.hooks import hookimpl

if TYPE_CHECKING:
    from permllm.components import Dataset


@hookimpl
def permllm_datasets() -> Iterable[type[Dataset]]:
    """The built-in sources of text."""
    from permllm.datasets.huggingface import HuggingFace
    from permllm.datasets.jsonl import Csv, JsonLines
    from permllm.datasets.python_docs import PythonDocs
    from permllm.datasets.text import Text

    return [PythonDocs, Text, JsonLines, Csv, HuggingFace]
