"""Which windows are done at the same time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from permllm.runner.turns import turns

COUNTS = st.integers(1, 40), st.integers(1, 9)


@given(*COUNTS)
def test_every_window_has_its_turn_in_order(windows: int, processes: int) -> None:
    for inputs in ("dense", "pruned"):
        found = turns(windows, inputs, processes)
        assert [index for turn in found for index in turn] == list(range(windows))


@given(*COUNTS)
def test_a_turn_has_a_window_for_each_process_or_one_for_all(windows: int, processes: int) -> None:
    sizes = [len(turn) for turn in turns(windows, "dense", processes)]
    assert sizes.count(processes) == (windows // processes if processes > 1 else windows)
    assert set(sizes) <= {1, processes}


@given(*COUNTS)
def test_windows_that_see_pruned_ones_wait_for_them(windows: int, processes: int) -> None:
    found = turns(windows, "pruned", processes)
    assert all(len(turn) == 1 for turn in found)
