"""The matching solver: optimal, doubly stochastic, with the gradient of the optimum."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from permllm_matching.solver import match, soft_match
from torch import Tensor

from permllm.core.permutations import invert
from permllm.core.sinkhorn import sinkhorn

EXACT = {"rounds": 1000, "tolerance": 1e-11}

seeds = st.integers(0, 2**31)
sizes = st.integers(1, 6)


def costs(seed: int, size: int, blocks: int = 2) -> Tensor:
    """Between 0 and 1: Sinkhorn's iterations slow down with the spread over the temperature."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(blocks, size, size, generator=generator, dtype=torch.float64)


def soft(cost: Tensor, temperature: float, **solver: float) -> Tensor:
    return soft_match(cost, temperature, **(EXACT | solver))[0]  # type: ignore[arg-type]


def total(cost: Tensor, local: Tensor) -> Tensor:
    """The cost of each block's permutation."""
    return cost.gather(1, local.unsqueeze(1)).sum((1, 2))


@given(seeds, sizes)
@settings(deadline=None, max_examples=30)
def test_the_matching_is_the_cheapest_of_all_permutations(seed: int, size: int) -> None:
    cost = costs(seed, size)
    every = torch.tensor(list(permutations(range(size))))
    cheapest = torch.stack([total(cost, p.expand(2, size)) for p in every]).amin(0)
    torch.testing.assert_close(total(cost, match(cost)), cheapest)


@given(seeds, sizes, st.sampled_from([0.5, 1.0, 5.0]))
@settings(deadline=None, max_examples=30)
def test_the_soft_matching_is_doubly_stochastic(seed: int, size: int, temperature: float) -> None:
    plan = soft(costs(seed, size), temperature)
    assert bool((plan >= 0).all())
    ones = torch.ones(2, size, dtype=torch.float64)
    # Columns by construction; rows as near as the iterations come, the slower the closer two
    # permutations are in cost.
    torch.testing.assert_close(plan.sum(-2), ones)
    torch.testing.assert_close(plan.sum(-1), ones, rtol=0, atol=1e-3)


@given(seeds, st.integers(2, 6))
@settings(deadline=None, max_examples=20)
def test_the_soft_matching_has_least_cost_and_entropy(seed: int, size: int) -> None:
    cost = costs(seed, size)

    def objective(plan: Tensor) -> Tensor:
        return (cost * plan + 0.5 * plan * (plan.log() - 1)).sum((-2, -1))

    other = sinkhorn(costs(seed + 1, size), 1.0, 200)
    assert bool((objective(soft(cost, 0.5)) <= objective(other) + 1e-9).all())


@given(seeds, st.integers(2, 6))
@settings(deadline=None, max_examples=20)
def test_as_the_temperature_falls_the_soft_matching_becomes_the_matching(
    seed: int, size: int
) -> None:
    cost = costs(seed, size)
    # Some order is well apart from the second best, or no temperature would be low.
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    cost[:, order, torch.arange(size)] -= 2
    prices = None
    for temperature in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
        plan, prices = soft_match(cost, temperature, rounds=100, tolerance=1e-9, prices=prices)
    assert torch.equal(match(cost), order.expand(2, size))
    hard = torch.nn.functional.one_hot(invert(order), size).double()
    torch.testing.assert_close(plan, hard.expand(2, size, size), atol=1e-6, rtol=0)


@given(seeds, st.integers(2, 5), st.sampled_from([0.3, 1.0]))
@settings(deadline=None, max_examples=20)
def test_the_gradient_is_that_of_the_iterations_at_their_end(
    seed: int, size: int, temperature: float
) -> None:
    cost, weight = costs(seed, size).requires_grad_(), costs(seed + 1, size)
    (soft(cost, temperature) * weight).sum().backward()
    unrolled = cost.detach().clone().requires_grad_()
    (sinkhorn(-unrolled, temperature, 300) * weight).sum().backward()
    torch.testing.assert_close(cost.grad, unrolled.grad, atol=1e-7, rtol=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    cost = costs(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft(x, 0.7), (cost,))


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_the_gradient_does_not_ask_for_other_sums(seed: int) -> None:
    cost = costs(seed, 5).requires_grad_()
    (soft(cost, 0.5) * costs(seed + 1, 5)).sum().backward()
    assert cost.grad is not None
    assert bool(cost.grad.count_nonzero())
    zeros = torch.zeros(2, 5, dtype=torch.float64)
    torch.testing.assert_close(cost.grad.sum(-1), zeros)
    torch.testing.assert_close(cost.grad.sum(-2), zeros)


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_what_costs_every_channel_or_every_place_the_same_changes_nothing(seed: int) -> None:
    cost, shift = costs(seed, 5), costs(seed + 1, 5)
    moved = cost + shift[:, :, :1] + shift[:, :1, :]
    torch.testing.assert_close(soft(moved, 0.5), soft(cost, 0.5))
    assert torch.equal(match(moved), match(cost))


def test_iterations_end_at_the_tolerance() -> None:
    cost = costs(4, 16)
    rough, prices = soft_match(cost, 0.3, rounds=1000, tolerance=0.05)
    error = float((rough.sum(-1) - 1).abs().max())
    assert 1e-4 < error <= 0.05
    better, _ = soft_match(cost, 0.3, rounds=1, tolerance=0.0, prices=prices)
    assert float((better.sum(-1) - 1).abs().max()) < error


def test_beginning_at_known_prices_is_quick_and_gives_the_same() -> None:
    cost = costs(5, 16)
    plan, prices = soft_match(cost, 0.3, **EXACT)  # type: ignore[arg-type]
    again, _ = soft_match(cost, 0.3, rounds=1, tolerance=0.0, prices=prices)
    torch.testing.assert_close(again, plan)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_costs_stay_finite(temperature: float, dtype: torch.dtype) -> None:
    cost = (1e4 * costs(6, 16).sign()).to(dtype)
    cost[0], cost[0, 3] = 0.0, -1e4
    cost.requires_grad_()
    plan, prices = soft_match(cost, temperature, rounds=50, tolerance=1e-3)
    (plan * costs(7, 16).to(dtype)).sum().backward()
    assert cost.grad is not None
    for tensor in (plan, prices, cost.grad):
        assert bool(tensor.isfinite().all())
    torch.testing.assert_close(plan.sum(-2), torch.ones(2, 16, dtype=dtype))


def test_the_same_costs_give_the_same_bits() -> None:
    cost = costs(8, 32).float().requires_grad_()
    results = []
    for _ in range(2):
        plan, prices = soft_match(cost, 0.2, rounds=20, tolerance=1e-3)
        (gradient,) = torch.autograd.grad(plan.square().sum(), cost)
        results.append((plan, prices, gradient, match(cost)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
