"""Log-likelihoods to compare with."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture
def reference():
    """The log-likelihood of a continuation by one forward pass over one sequence."""

    def call(model: Any, context: tuple[int, ...], continuation: tuple[int, ...]) -> float:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context + continuation]), use_cache=False).logits
        likely = logits[0].double().log_softmax(-1)
        places = range(len(context) - 1, len(context) + len(continuation) - 1)
        return sum(float(likely[i, token]) for i, token in zip(places, continuation, strict=True))

    return call
