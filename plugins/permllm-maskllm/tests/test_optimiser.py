"""AdamW in the backward pass against torch's."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from permllm_maskllm import optimiser
from permllm_maskllm.optimiser import AdamW
from torch import Tensor

OPTIONS = {"betas": (0.9, 0.95), "weight_decay": 0.1}


def start() -> Tensor:
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss(values: Tensor, step: int) -> Tensor:
    return (values.pow(3) * (step + 1)).sum()


@pytest.mark.parametrize("part", [1, 7, 1000])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_it_equals_torchs(part: int, epsilon: float) -> None:
    one, two = (start().requires_grad_() for _ in range(2))
    ours = AdamW([one], epsilon=epsilon, dtype=torch.float64, **OPTIONS)
    theirs = torch.optim.AdamW([two], lr=0.1, eps=epsilon, **OPTIONS)
    for step in range(5):
        for adam in (ours, theirs):
            adam.param_groups[0]["lr"] = 0.1 / (step + 1)
        with mock.patch.object(optimiser, "PART", part):
            loss(one, step).backward()
        theirs.zero_grad()
        loss(two, step).backward()
        theirs.step()
        assert one.grad is None
    torch.testing.assert_close(one, two)


def test_narrow_moments_are_near_the_wide_ones() -> None:
    one, two = (start().float().requires_grad_() for _ in range(2))
    for values, dtype in ((one, torch.float32), (two, torch.bfloat16)):
        adam = AdamW([values], epsilon=1e-8, dtype=dtype, **OPTIONS)
        adam.param_groups[0]["lr"] = 0.01
        for step in range(10):
            loss(values, step).backward()
    assert not torch.equal(one, two)
    torch.testing.assert_close(one, two, atol=2e-3, rtol=0)


def test_what_has_no_gradient_stays() -> None:
    one, two = start().requires_grad_(), start().requires_grad_()
    adam = AdamW([one, two], epsilon=1e-8, dtype=torch.float32, **OPTIONS)
    adam.param_groups[0]["lr"] = 0.1
    loss(one, 0).backward()
    assert not torch.equal(one, start())
    assert torch.equal(two, start())
