"""The calibration sequences of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from permllm.contexts.sequences import Sequences
from permllm.datasets.sequences import calibration_sequences
from permllm.pipeline.schema import Calibration, Pipeline


def wished_sequences(pipeline: Pipeline) -> int:
    """How many learning sequences the pipeline's learner and pruners want at the most."""
    layers, asked = pipeline.layers, pipeline.calibration.sequences
    pruners = [layers.pruner, *(override.pruner for override in layers.overrides)]
    wishes = [pruner.sequences(asked) for pruner in pruners if pruner is not None]
    return max(layers.permutation.sequences(asked), *wishes)


def read_sequences(calibration: Calibration, tokenizer: Any, learning: int) -> Sequences:
    """Read and cut the calibration text.

    Args:
        calibration: that section of the pipeline.
        tokenizer: the model's.
        learning: how many learning sequences the learner wants; it gets fewer, but
            never less than the calibration asks for, where the text ends before.

    Raises:
        UserError: the text is missing or too short.
    """
    learned, held_out = calibration_sequences(
        calibration.dataset,
        tokenizer,
        length=calibration.length,
        sequences=calibration.sequences,
        held_out=calibration.held_out,
        seed=calibration.seed,
        wish=learning,
    )
    return sequences_of(calibration, torch.cat([learned, held_out]))


def sequences_of(calibration: Calibration, tokens: Tensor) -> Sequences:
    """The sequences of a calibration, from all their tokens: learning, then held out."""
    count = len(tokens) - calibration.held_out
    return Sequences(
        tokens=tokens,
        calibration=calibration.sequences,
        learning=torch.arange(count),
        held_out=torch.arange(count, len(tokens)),
        batch_size=calibration.batch_size,
    )
