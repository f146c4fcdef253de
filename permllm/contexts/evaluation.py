"""What an evaluator gets besides the model and the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import attrs
from torch import Tensor

from permllm.core.patterns import Pattern
from permllm.world import ALONE, World

Runs = Literal["cpu kernel", "semi-structured", "dense"]


@attrs.frozen
class LinearReport:
    """How one pruned linear runs.

    Attributes:
        name: the linear's.
        pattern: what its weight is pruned to.
        runs: what multiplies.
        reason: why it stays dense, as a clause; None where it runs sparse.
        bytes: of its weight, as it is held in memory now.
    """

    name: str
    pattern: Pattern
    runs: Runs
    reason: str | None
    bytes: int


Packed = AbstractContextManager[Sequence[LinearReport]]
"""Runs the model packed for a block, and says of each pruned linear how it runs."""


def _nothing_pruned() -> Packed:
    """A dense model is served as it is."""
    return nullcontext(())


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
        packed: ``with context.packed() as linears:`` has ``model`` run as it would be served,
            for the block: pruned weights packed N:M, in their learned order, with the same
            logits but for rounding. ``linears`` says of each pruned linear how it runs; it is
            empty for a dense model, which runs as it is. Raises a UserError where none of them
            can run packed. A block of ``dense`` may stand neither within it nor around it.
        world: the processes that evaluate together, where the evaluator is ``parallel``.
    """

    device: str = "cpu"
    batch_size: int = 4
    held_out: Tensor | None = None
    dense: Callable[[], AbstractContextManager[None]] | None = None
    saved: Path | None = None
    progress: Callable[[int, int], None] = _ignore
    packed: Callable[[], Packed] = _nothing_pruned
    world: World = ALONE
