"""What the tests of metrics share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Linear = Callable[[int], tuple[Tensor, Tensor]]


@pytest.fixture(scope="session")
def linear() -> Linear:
    """Makes a random weight ``[C_out, C_in]`` and inputs ``[tokens, C_in]``, in float64."""

    def make(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(6, 16, generator=generator, dtype=torch.float64)
        return weight, torch.randn(40, 16, generator=generator, dtype=torch.float64)

    return make
