"""Gaps: against which run, and how much of them is closed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.comparing.comparison import Gap, gap, reference

FIGURE = "perplexity/python-docs"
perplexity = st.floats(1, 1e6)


def closed(results, label: str) -> float | None:
    found = gap(results, results[label], FIGURE)
    return found and found.closed


def test_gap_is_closed_against_the_run_without_permutation(results) -> None:
    assert closed(results(), "cp") == pytest.approx(0.25)
    assert closed(results(), "lcp") == pytest.approx(0.75)
    assert closed(results(), "none") is None
    assert closed(results(), "dense") is None


def test_reference_has_the_same_other_options(results, pruned) -> None:
    grid = results(
        *(
            pruned(f"{metric} {order}", figure, metric={"name": metric}, permutation=order)
            for metric, figures in {"wanda": (100.0, 60.0), "ria": (70.0, 60.0)}.items()
            for order, figure in zip(("none", "cp"), figures, strict=True)
        )
    )
    assert closed(grid, "wanda cp") == pytest.approx(0.5)
    assert closed(grid, "ria cp") == pytest.approx(0.2)


def test_without_its_counterpart_a_run_has_no_reference(results, pruned) -> None:
    lone = results(
        pruned("none wanda", 90.0, permutation="none", metric="wanda"),
        pruned("cp ria", 60.0, permutation="cp", metric="ria"),
    )
    assert reference(lone, lone["cp ria"]) is None
    assert closed(lone, "cp ria") is None


def test_options_of_the_permutation_are_its_own(results, pruned) -> None:
    lone = results(
        pruned("none", 100.0, permutation="none"),
        pruned("block=16", 60.0, permutation="lcp", **{"permutation.block": 16}),
    )
    assert closed(lone, "block=16") == pytest.approx(0.5)


def test_another_option_that_is_called_none_is_no_reference(results, pruned) -> None:
    starts = results(
        pruned("none", 100.0, **{"permutation.start": "none"}),
        pruned("cp", 60.0, **{"permutation.start": "cp"}),
    )
    assert reference(starts, starts["cp"]) is None
    assert closed(starts, "cp") is None


@pytest.mark.parametrize("unordered", [20.0, 19.0, math.inf, math.nan])
def test_no_gap_has_no_share(unordered: float) -> None:
    assert Gap(FIGURE, 20.0, unordered, 21.0).closed is None


@given(dense=perplexity, opened=st.floats(1e-3, 1e6), share=st.floats(-5, 1))
def test_share_is_linear_in_the_perplexity(dense: float, opened: float, share: float) -> None:
    unordered = dense + opened
    ordered = unordered - share * (unordered - dense)
    assert Gap(FIGURE, dense, unordered, ordered).closed == pytest.approx(share, abs=1e-4)
