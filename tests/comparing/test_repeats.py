"""Spread and paired differences of repeats, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.comparing.comparison import difference, gaps, rival
from permllm.comparing.repeats import Setting, paired, repeated, settings, spread
from permllm.results import RunResult

FIGURE = "perplexity/python-docs"

values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8)


def setting(label: str, figures: dict[int, float]) -> Setting:
    runs = [
        RunResult(f"{label} #{repeat}", {"f": value}, 1.0, 1, setting=label, repeat=repeat)
        for repeat, value in figures.items()
    ]
    return Setting(label, tuple(runs))


@given(values)
def test_spread_is_mean_and_sample_deviation(found: list[float]) -> None:
    said = spread(found)
    assert said is not None
    assert said.count == len(found)
    assert said.mean == pytest.approx(np.mean(found), abs=1e-6)
    assert said.deviation == pytest.approx(np.std(found, ddof=1), rel=1e-6, abs=1e-6)


@given(st.floats(-1e6, 1e6), st.integers(2, 9))
def test_equal_values_have_no_spread(value: float, count: int) -> None:
    assert spread([value] * count) == spread([value] * count)
    assert spread([value] * count).deviation == pytest.approx(0, abs=1e-9)


def test_spread_of_few_or_infinite_values() -> None:
    assert spread([]) is None
    assert spread([3.0]).deviation is None
    assert spread([math.inf, 1.0]).mean == math.inf


@given(values, st.data())
def test_paired_differences(ours: list[float], data: st.DataObject) -> None:
    theirs = [value + data.draw(st.floats(-10, 10)) for value in ours]
    lost = data.draw(st.sets(st.integers(0, len(ours) - 1), max_size=len(ours) - 2))
    mine = setting("a", dict(enumerate(ours)))
    other = setting("b", {r: value for r, value in enumerate(theirs) if r not in lost})
    found = paired(mine, other, "f")
    kept = [repeat for repeat in range(len(ours)) if repeat not in lost]
    differences = np.array([ours[repeat] - theirs[repeat] for repeat in kept])
    assert found is not None
    assert found.count == len(kept)
    assert found.mean == pytest.approx(differences.mean(), abs=1e-6)
    error = differences.std(ddof=1) / math.sqrt(len(kept))
    assert found.error == pytest.approx(error, rel=1e-6, abs=1e-6)
    assert (found.lower, found.higher) == ((differences < 0).sum(), (differences > 0).sum())


def test_nothing_to_pair() -> None:
    assert paired(setting("a", {0: 1.0}), setting("b", {1: 1.0}), "f") is None
    assert paired(setting("a", {0: 1.0}), setting("b", {0: 1.0}), "g") is None
    assert paired(setting("a", {0: 1.0}), setting("b", {0: 3.0}), "f").error is None


def test_settings_gather_their_repeats(study) -> None:
    made = study(none=[100.0, 110.0], cp=[80.0, None])
    assert repeated(made)
    found = settings(made)
    assert [one.label for one in found] == ["dense", "none", "cp"]
    assert [(len(one.runs), len(one.failed)) for one in found] == [(1, 0), (2, 0), (1, 1)]


def test_gaps_are_those_of_the_repeats(study) -> None:
    made = study(none=[100.0, 120.0], cp=[80.0, 100.0])
    found = gaps(made, settings(made)[2], FIGURE)
    # A quarter and a fifth, where the gap of the means would be 20 / 90.
    assert found.closed.mean == pytest.approx((20 / 80 + 20 / 100) / 2)
    assert (found.unordered.mean, found.ordered.mean) == (110.0, 90.0)


def test_a_repeat_without_its_reference_has_no_gap(study) -> None:
    made = study(none=[None, 120.0], cp=[80.0, 100.0])
    found = gaps(made, settings(made)[2], FIGURE)
    assert found.closed.mean == pytest.approx(20 / 100)
    assert difference(made, settings(made)[2], FIGURE).count == 1


def test_rivals(study, results, pruned) -> None:
    made = study(none=[100.0, 120.0], cp=[80.0, 100.0])
    dense, none, cp = settings(made)
    assert (rival(made, dense), rival(made, none), rival(made, cp)) == (None, None, none)
    made = study(cp=[None, None], greedy=[80.0, 100.0], lcp=[60.0, 61.0])
    assert rival(made, settings(made)[3]).label == "greedy"
    assert rival(made, settings(made)[2]) is None
