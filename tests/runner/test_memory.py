"""The peak of memory within a block."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped from files")
def test_what_is_mapped_from_files_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(SIZE)
    with PeakMemory(0.01) as peak:
        before = peak.bytes
        mapped = torch.from_file(str(path), size=SIZE, dtype=torch.uint8)
        assert int(mapped.max()) == 0  # every page has been read
        time.sleep(0.1)
    assert peak.bytes - before < SIZE / 2
