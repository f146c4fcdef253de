"""What a run measured, and what it took."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from permllm.measured import Cost, RunResult


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_times_add_up_and_the_higher_peak_counts(a: int, b: int, c: int, d: int) -> None:
    assert Cost(a, b) + Cost(c, d) == Cost(a + c, max(b, d))


def test_a_run_that_is_not_repeated_is_its_own_setting() -> None:
    assert RunResult("cp", {}, 0.0, 0).setting == "cp"
    assert RunResult("cp #2", {}, 0.0, 0, setting="cp").setting == "cp"
