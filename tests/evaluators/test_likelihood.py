"""Log-likelihoods of continuations are those of whole sequences."""

from __future__ import annotations

import pytest
import torch

from permllm.evaluators.likelihood import Request, log_likelihoods
from permllm.testing.models import ARCHITECTURES, tiny_model


def some_requests() -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    contexts = [
        tuple(torch.randint(257, (length,), generator=generator).tolist())
        for length in (1, 5, 5, 5, 9)
    ]
    return [
        Request(context, tuple(torch.randint(257, (length,), generator=generator).tolist()))
        for context in contexts
        for length in (1, 1, 4, 2, 7)
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("tokens", [1, 16, 10_000])
def test_log_likelihoods(architecture: str, cached: bool, tokens: int, reference) -> None:
    model, requests = tiny_model(architecture), some_requests()
    # A recurrent model's state cannot be split into rows.
    model._is_stateful = not cached
    steps = []
    found = log_likelihoods(
        model, requests, device="cpu", tokens=tokens, progress=lambda *step: steps.append(step)
    )
    expected = [reference(model, request.context, request.continuation) for request in requests]
    assert found == pytest.approx(expected, rel=1e-4)
    assert steps[0] == (0, 25)
    assert steps[-1] == (25, 25)
