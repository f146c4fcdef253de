"""What an evaluator gets besides the model and the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import attrs
from torch import Tensor


def _ignore(done: int, total: int) -> None:
    """Progress that nobody watches."""


@attrs.frozen
class EvaluationContext:
    """Surroundings of an evaluation.

    Attributes:
        device: where the model's inputs go, as torch spells it.
        batch_size: sequences per forward pass.
        held_out: ``LongTensor[n, length]``, calibration sequences never learned from;
            None where there are none (``permllm eval`` without a pipeline).
        dense: ``with context.dense():`` gives ``model`` its unpruned weights for the
            block; None where the dense model is not known.
        saved: folder whose safetensors hold the pruned tensors; None for the dense model.
        progress: call ``progress(done, total)`` now and then.
    """

    device: str = "cpu"
    batch_size: int = 4
    held_out: Tensor | None = None
    dense: Callable[[], AbstractContextManager[None]] | None = None
    saved: Path | None = None
    progress: Callable[[int, int], None] = _ignore
