"""Operations that give the same bits every time, on devices where that has to be asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CUBLAS, WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
"""With a workspace of a fixed size cuBLAS sums in one order; it is told before its first use."""


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Have PyTorch take deterministic operations in the block, and refuse those that have none.

    Args:
        wanted: False leaves everything as it is.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault(CUBLAS, WORKSPACE)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
