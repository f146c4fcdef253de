"""What surrounds the compiled kernels: threads, and tiles of so many rows.

What they compute is tested where they are used: ``test_block_product.py`` and
``test_placements.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest
import torch

from permllm.core import kernels


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Numbers of threads are as they were after a test."""
    ours, theirs = torch.get_num_threads(), numba.get_num_threads()
    yield
    torch.set_num_threads(ours)
    numba.set_num_threads(theirs)


def test_asking_numba_leaves_pytorchs_threads() -> None:
    torch.set_num_threads(3)
    assert kernels._most_threads() == numba.get_num_threads()
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("threads_of_torch", [1, 2, 1000])
@pytest.mark.parametrize("work", [1, 12])
def test_kernels_take_as_many_threads_as_pytorch_but_no_more_than_there_are_or_is_work_for(
    threads_of_torch: int, work: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four channels of three rows, of which each is compared with four."""
    monkeypatch.setattr(kernels, "_COMPARISONS", 48 // work + 1)
    torch.set_num_threads(threads_of_torch)
    words = np.ones((4, 3), np.int32)
    order, scores = np.arange(4), np.ones((4, 3), np.float32)
    expected = min(threads_of_torch, kernels._MOST_THREADS, work)
    kernels.masked_on_cpu(words, scores, order, order, 2, 4, np.empty_like(words))
    assert numba.get_num_threads() == expected
    numba.set_num_threads(1)
    kernels.placement_gradient_on_cpu(scores[None], scores[None], order[None], 2, 4)
    assert numba.get_num_threads() == expected


@pytest.mark.parametrize(("rows", "tiles"), [(1, 1), (512, 1), (513, 2), (1024, 2), (1025, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_cut_into_tiles_and_their_sums_added(
    monkeypatch: pytest.MonkeyPatch, rows: int, tiles: int, dtype: Any
) -> None:
    seen: list[Any] = []

    def placements(scores: Any, gradient: Any, local: Any, n: int, m: int, parts: Any) -> None:
        seen.append((n, m, parts.shape, parts.dtype))
        parts[:] = np.arange(parts.size).reshape(parts.shape)

    monkeypatch.setattr(kernels, "_placements", placements)
    scores = np.ones((2, 4, rows), dtype)
    sums = kernels.placement_gradient_on_cpu(scores, scores, np.arange(8).reshape(2, 4), 1, 4)
    assert seen == [(1, 4, (2, tiles, 4, 4), dtype)]
    parts = np.arange(2 * tiles * 16).reshape(2, tiles, 4, 4)
    assert sums.tolist() == parts.sum(1).tolist()
