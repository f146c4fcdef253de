"""The peak of memory within a block."""

from __future__ import annotations

import time

import torch

from permllm.runner.memory import PeakMemory

SIZE = 2**28
"""Bytes: much more than what a test process takes and gives back by itself."""


def test_the_peak_counts_what_was_freed_within_the_block_and_nothing_from_before() -> None:
    torch.ones(2 * SIZE, dtype=torch.uint8)
    peaks = []
    for size in (1, SIZE):
        with PeakMemory(0.01) as peak:
            taken = torch.ones(size, dtype=torch.uint8)
            time.sleep(0.1)  # to be seen by the thread that samples
            del taken
        peaks.append(peak.bytes)
    assert SIZE / 2 < peaks[1] - peaks[0] < 2 * SIZE
