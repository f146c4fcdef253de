"""Toy linears: of every type, the same each time, and with sums that are their inputs'."""

from __future__ import annotations

import torch

from permllm.core.statistics import GRAM, TOKENS
from permllm.testing.linears import toy_linear, toy_linears


def test_there_are_ordinary_and_degenerate_ones_of_every_type() -> None:
    toys = list(toy_linears((8, 48)))
    assert {toy.weight.dtype for toy in toys} == {torch.float32, torch.bfloat16, torch.float64}
    assert len({toy.what for toy in toys}) == len(toys)
    assert any(not toy.weight.any() for toy in toys)
    assert any(bool((toy.inputs == 0).all(0).any()) for toy in toys)
    assert all(toy.weight.shape[1] == toy.inputs.shape[1] for toy in toys)


def test_one_seed_gives_one_linear() -> None:
    one, again, other = (toy_linear(4, 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one.weight, again.weight)
    assert torch.equal(one.inputs, again.inputs)
    assert not torch.equal(one.weight, other.weight)


def test_statistics_are_sums_of_all_inputs_in_any_order_of_batches() -> None:
    toy = toy_linear(4, 8, 0)
    for order in ((0, 1, 2), (2, 0, 1)):
        sums = toy.statistics((TOKENS, GRAM), order)
        assert float(sums["tokens"]) == len(toy.inputs)
        torch.testing.assert_close(sums["gram"], toy.inputs.T @ toy.inputs)
