"""What an exporter gets."""

from __future__ import annotations

from typing import Any

import attrs

from permllm.results import RunResult


@attrs.frozen(eq=False)
class ExportContext:
    """A pruned model, ready to be written.

    Attributes:
        model: the causal language model, holding the pruned weights.
        tokenizer: its tokenizer.
        pipeline_yaml: the resolved pipeline of this run.
        label: the run's label.
        result: the run's figures.
        dense: the dense model's figures.
        versions: of permllm, torch and so on, by distribution.
        model_description: where the dense model came from.
    """

    model: Any
    tokenizer: Any
    pipeline_yaml: str
    label: str
    result: RunResult
    dense: RunResult
    versions: dict[str, str]
    model_description: str
