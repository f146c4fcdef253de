"""The calibration sequences of a run."""

from __future__ import annotations

import attrs
from torch import Tensor


@attrs.frozen(eq=False)
class Sequences:
    """Calibration text as tokens.

    Attributes:
        tokens: ``LongTensor[n, L]``: the learning sequences, then the held-out ones.
        calibration: how many of the first are used for statistics, and make one pass.
        learning: rows that may be learned from.
        held_out: rows that are never learned from.
        batch_size: sequences per forward pass where no gradient is needed.
    """

    tokens: Tensor
    calibration: int
    learning: Tensor
    held_out: Tensor
    batch_size: int

    def batches(self) -> list[Tensor]:
        """All rows in batches, of which none holds both kinds of sequences.

        So the batches of a longer request begin with those of a shorter one.
        """
        parts = [part for part in (self.learning, self.held_out) if len(part)]
        return [rows for part in parts for rows in part.split(self.batch_size)]
