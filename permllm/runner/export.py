"""What an exporter gets."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor

from permllm.core.patterns import Pattern
from permllm.models.decoder import Decoder
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
        decoder: the model's layers, linears and permutation groups.
        perms: by group, ``LongTensor[C_in]``; for every pruned linear of the group
            ``weight[:, perm]`` holds its pattern.
        patterns: of every pruned linear.
    """

    model: Any
    tokenizer: Any
    pipeline_yaml: str
    label: str
    result: RunResult
    dense: RunResult
    versions: dict[str, str]
    model_description: str
    decoder: Decoder
    perms: dict[str, Tensor]
    patterns: dict[str, Pattern]
