"""A histogram of each input channel as a sum over tokens.

The range of a channel is not known before all tokens have been seen, and a sum cannot
wait for it. So the bins are the same for all channels and span every size that
activations have: one bin around zero, and on either side of it :data:`STEPS` bins in
each octave from ``2^LOWEST`` to ``2^HIGHEST``. Within an octave all bins are equally
wide. The bin of a number is then the exponent and the first bits of the mantissa of its
float32, and a number times a power of two moves by whole octaves.

Counts are whole numbers below 2²⁴ and so exact in float32: batches may be cut and added
in any way, on any number of processes, and give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from permllm.core.statistics import Statistic

LOWEST, HIGHEST = -16, 16
"""Numbers smaller than ``2^LOWEST`` count as zero, those from ``2^HIGHEST`` on as the largest."""

STEPS = 16
"""Bins of an octave, a power of two: a bin is a sixteenth of its octave's start wide."""

SIDE = (HIGHEST - LOWEST) * STEPS
"""Bins of each sign; bin ``SIDE`` is the one around zero."""

BINS = 2 * SIDE + 1
"""All bins, from the most negative to the most positive numbers."""

_MANTISSA, _BIAS = 23, 127
_DROPPED = _MANTISSA - (STEPS.bit_length() - 1)
"""Bits of the mantissa that do not matter for the bin."""
_FIRST = (_BIAS + LOWEST) * STEPS
"""What is left of ``2^LOWEST`` without them."""

_CPU_ELEMENTS = 1 << 16
"""Inputs that are counted at once, so that what is computed on the way stays in the cache."""
_GPU_ELEMENTS = 1 << 26


def bin_edges() -> Tensor:
    """``float64[BINS + 1]``: bin ``b`` lies between entries ``b`` and ``b + 1``.

    The outermost bins also hold what is beyond them.
    """
    octaves = torch.arange(LOWEST, HIGHEST, dtype=torch.float64).exp2()
    steps = 1 + torch.arange(STEPS, dtype=torch.float64) / STEPS
    positive = torch.cat([torch.outer(octaves, steps).flatten(), 2 * octaves[-1:]])
    return torch.cat([-positive.flip(0), positive])


def bin_numbers(values: Tensor) -> Tensor:
    """The bin of each value.

    Args:
        values: of any floating-point dtype; they are rounded to float32.

    Returns:
        ``int32`` of the same shape, from 0 to ``BINS - 1``.
    """
    bits = values.float().contiguous().view(torch.int32)
    size = ((bits & 0x7FFFFFFF) >> _DROPPED).sub_(_FIRST - 1).clamp_(0, SIDE)
    # The sign bit is -1 once it has been shifted down to the end.
    return SIDE + size * (1 + 2 * (bits >> 31))


def channel_counts(inputs: Tensor) -> Tensor:
    """How many inputs of each channel lie in each bin.

    Args:
        inputs: ``[tokens, C_in]``, of any floating-point dtype; there may be no tokens.

    Returns:
        ``float32[C_in, BINS]``.
    """
    tokens, channels = inputs.shape
    counts = torch.zeros(channels, BINS, device=inputs.device)
    one = counts.new_ones(())
    limit = _CPU_ELEMENTS if inputs.device.type == "cpu" else _GPU_ELEMENTS
    at_once = max(1, limit // max(1, tokens))
    for some, count in zip(inputs.T.split(at_once), counts.split(at_once), strict=True):
        numbers = bin_numbers(some).long()
        count.scatter_add_(1, numbers, one.expand_as(numbers))
    return counts


HISTOGRAM = Statistic("signed_log_histogram", channel_counts)
"""Counts of every input channel, ``float32[C_in, BINS]``: 4.1 kB a channel."""
