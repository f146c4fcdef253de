"""How contract tests fail."""

from __future__ import annotations

import torch
from torch import Tensor


def expect(condition: object, message: str) -> None:
    """Fail with ``message`` unless ``condition`` holds; also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def expect_equal(one: Tensor, two: Tensor, message: str) -> None:
    """Fail with ``message`` unless two tensors have the same bits."""
    expect(one.dtype == two.dtype and torch.equal(one, two), message)


def expect_close(one: Tensor, two: Tensor, message: str) -> None:
    """Fail with ``message`` unless two tensors are equal but for rounding in float32."""
    expect(one.shape == two.shape, message)
    one, two = one.double(), two.double()
    # Of NaN and infinity no multiple is a tolerance.
    scale = float(two.abs().nan_to_num(0, 0).max()) if two.numel() else 0.0
    expect(torch.allclose(one, two, rtol=1e-3, atol=1e-5 * scale), message)
