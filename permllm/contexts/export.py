"""What an exporter gets."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.contexts.sequences import Sequences
from permllm.core.patterns import Pattern
from permllm.deprecation import warn_of_old_name
from permllm.errors import UserError
from permllm.folding.layout import Layout
from permllm.folding.plan import StoragePlan
from permllm.models.decoder import Decoder
from permllm.models.origin import Origin
from permllm.results import RunResult


def _no_text() -> Sequences:
    raise UserError("this export has no calibration text, which the exporter asks for")


@attrs.frozen(eq=False)
class ExportContext:
    """A pruned model, ready to be written.

    Attributes:
        model: the causal language model, holding the pruned weights.
        tokenizer: its tokenizer.
        pipeline_yaml: the resolved pipeline of this run, with nothing of the machine in it.
        label: the run's label.
        result: the run's figures.
        dense: the dense model's figures.
        versions: of permllm, torch and so on, by distribution.
        model_description: where the dense model came from.
        decoder: the model's layers, linears and permutation groups.
        permutations: by group, ``LongTensor[C_in]``; for every pruned linear of the group
            ``weight[:, permutation]`` holds its pattern.
        patterns: of every pruned linear.
        layout: how permutations of the model can be stored.
        dtype: in which weights are saved, unless the exporter's options say otherwise: that of
            the checkpoint; None for that in memory.
        origin: which published model the dense one is.
        calibration: reads the calibration sequences, for exporters that round by them.
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
    permutations: dict[str, Tensor]
    patterns: dict[str, Pattern]
    layout: Layout
    dtype: torch.dtype | None = None
    origin: Origin = attrs.field(
        default=attrs.Factory(lambda self: Origin(Path(self.model_description).name), True)
    )
    calibration: Callable[[], Sequences] = _no_text

    @cached_property
    def storage(self) -> StoragePlan:
        """How the model is stored in its permutations; worked out once for all exporters.

        Raises:
            UserError: a permutation can be neither folded nor gathered.
        """
        return self.layout.plan(self.permutations)

    def weight(self, linear: str) -> Tensor:
        """The pruned weight ``[C_out, C_in]`` of a linear, in its original channel order.

        However the model stores it: transposed, or stacked with other experts'.
        """
        return self.decoder.weight(linear)

    def group_of(self, linear: str) -> str:
        """The name of the permutation group that a linear is in."""
        return next(name for name, group in self.decoder.groups.items() if linear in group.linears)

    @property
    def perms(self) -> dict[str, Tensor]:
        """Deprecated: :attr:`permutations`."""
        warn_of_old_name("ExportContext.perms", "permutations")
        return self.permutations
