from __future__ import annotations

import pytest
import torch

from permllm.metrics.magnitude import Magnitude


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_a_score_is_the_absolute_value(given: torch.dtype, expected: torch.dtype) -> None:
    weight = torch.tensor([[-1.5, 0.0], [0.25, -3.0]], dtype=given)
    scores = Magnitude().scores(weight, {})
    assert scores.dtype == expected
    assert scores.tolist() == [[1.5, 0.0], [0.25, 3.0]]
