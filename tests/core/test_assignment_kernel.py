"""The kernel assigns as SciPy does, whatever the blocks, their dtype and the threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from permllm.core.assignment_kernel import assign_on_cpu
from permllm.core.threads import threads


def by_scipy(weights: np.ndarray) -> np.ndarray:
    exact = weights.astype(np.float64)
    return np.stack([linear_sum_assignment(block, maximize=True)[1] for block in exact])


@given(
    seed=st.integers(0, 2**31),
    blocks=st.integers(1, 5),
    size=st.integers(1, 20),
    levels=st.sampled_from([2, 3, 1000]),
    dtype=st.sampled_from([np.float32, np.float64]),
    count=st.sampled_from([1, 2]),
)
def test_chooses_what_scipy_chooses_among_equals_too(
    seed: int, blocks: int, size: int, levels: int, dtype: type, count: int
) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.integers(-levels, levels, (blocks, size, size)).astype(dtype)
    with threads(count):
        columns = assign_on_cpu(weights)
    assert columns.dtype == np.int64
    np.testing.assert_array_equal(columns, by_scipy(weights))


@pytest.mark.parametrize("lean", [0.0, 0.5, 3.0])
def test_many_blocks_as_a_learning_step_has_them(lean: float) -> None:
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((300, 64, 64)) * 0.3 + lean * np.eye(64)
    np.testing.assert_array_equal(assign_on_cpu(weights), by_scipy(weights))


def test_single_matrices_are_assigned_from_many_threads_at_once() -> None:
    weights = np.random.default_rng(1).standard_normal((8, 1, 60, 60))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(assign_on_cpu, weights))
    for columns, single in zip(found, weights, strict=True):
        np.testing.assert_array_equal(columns, by_scipy(single))


def test_no_blocks_and_blocks_of_nothing() -> None:
    assert assign_on_cpu(np.zeros((0, 4, 4))).shape == (0, 4)
    assert assign_on_cpu(np.zeros((2, 0, 0))).shape == (2, 0)
