"""Runs and their seeds."""

from __future__ import annotations

import doctest

from hypothesis import given
from hypothesis import strategies as st

from permllm.pipeline.matrix import cells
from permllm.pipeline.matrix.cells import derived_seed
from permllm.pipeline.schema import MAX_SEED


def test_examples_in_docstrings() -> None:
    results = doctest.testmod(cells)
    assert results.attempted > 0
    assert results.failed == 0


@given(st.integers(0, MAX_SEED), st.integers(2, 100))
def test_derived_seeds_are_distinct_seeds(seed: int, repeat: int) -> None:
    for key in ("seed", "calibration.seed"):
        seeds = [derived_seed(seed, key, number) for number in range(repeat)]
        assert len(set(seeds)) == repeat
        assert all(0 <= derived <= MAX_SEED for derived in seeds)
    assert derived_seed(seed, "seed", 1) != derived_seed(seed, "calibration.seed", 1)
