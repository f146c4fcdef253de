"""Outlier-weighted sparsity: its contract and its formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from permllm.allocations.owl import Owl, outlier_share, wanted_densities
from permllm.contexts.allocation import PrunedLinear
from permllm.core.patterns import Pattern
from permllm.testing import check_allocation


@pytest.mark.parametrize("spread", [0.0, 0.08, 0.5])
def test_contract(spread: float) -> None:
    check_allocation(Owl(threshold=2.0, spread=spread))


def test_outliers_are_counted_against_the_mean() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0, 9.0], [1.0, 1.0, 1.0, 1.0]])  # mean 2
    assert outlier_share(scores, 4.0) == 1 / 8
    assert outlier_share(scores, 4.5) == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 1000)), min_size=1, max_size=20),
    st.floats(0, 0.5),
)
def test_densities_keep_their_mean_and_the_order_of_outliers(
    layers: list[tuple[float, int]], spread: float
) -> None:
    shares, sizes = [share for share, _ in layers], [size for _, size in layers]
    wanted = wanted_densities(shares, sizes, 0.5, spread)
    total = sum(one * size for one, size in zip(wanted, sizes, strict=True))
    assert total == pytest.approx(0.5 * sum(sizes))
    assert max(wanted) - min(wanted) <= 2 * spread + 1e-9
    if max(shares) > min(shares):
        assert max(wanted) - min(wanted) == pytest.approx(2 * spread)
        assert wanted[shares.index(max(shares))] == max(wanted)


def test_layers_with_more_outliers_keep_more() -> None:
    linears = {
        f"{layer}.{name}": PrunedLinear(layer, f"{layer}.{name}", (8, 16), Pattern(4, 8))
        for layer in range(3)
        for name in ("q", "down")
    }
    figures = {name: 0.01 * (3 - one.layer) for name, one in linears.items()}
    patterns = Owl(spread=0.125).allocate(figures, linears)
    shown = [str(pattern) for pattern in patterns.values()]
    assert shown == ["5:8", "5:8", "4:8", "4:8", "3:8", "3:8"]
