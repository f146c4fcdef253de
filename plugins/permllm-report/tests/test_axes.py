"""Axes, labels and downsampling: what must hold for any figures."""

from __future__ import annotations

import doctest
import math
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from permllm_report import axes, heat, svg
from permllm_report.axes import Axis, linear_ticks, log_ticks, thinned
from permllm_report.curves import every, means, split
from permllm_report.labels import LETTER, Box, place_labels
from permllm_report.order_picture import dots_each, ranks


@pytest.mark.parametrize("module", [axes, heat, svg], ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    failed, attempted = doctest.testmod(module)
    assert (failed, attempted > 0) == (0, True)


values = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
positive = st.floats(1e-6, 1e9)


@given(st.lists(values, min_size=1), st.sampled_from([(0.0, 300.0), (200.0, 20.0)]))
def test_an_axis_holds_its_values_in_order(found: list[float], ends: tuple[float, float]) -> None:
    axis = Axis.around(found, *ends)
    low, high = sorted(ends)
    places = [axis.place(value) for value in sorted(found)]
    assert all(low <= place <= high for place in places)
    assert places == sorted(places, reverse=ends[0] > ends[1])


@given(st.lists(positive, min_size=2, unique=True))
def test_a_logarithmic_axis_spaces_factors_evenly(found: list[float]) -> None:
    axis = Axis.around([*found, 8 * max(found), min(found) / 8], 0.0, 300.0)
    assert axis.logarithmic
    middle = math.sqrt(axis.low * axis.high)
    assert axis.place(middle) == pytest.approx(150.0)


@given(positive, st.floats(1.001, 1e6))
def test_ticks_are_few_and_on_the_axis(low: float, factor: float) -> None:
    high = low * factor
    for ticks in (linear_ticks(low, high), log_ticks(low, high)):
        assert len(ticks) <= 6
        assert all(low * (1 - 1e-9) <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert len(linear_ticks(low, high)) >= 2
    for axis in (Axis(low, high, 0, 1), Axis(low, high, 0, 1, True)):
        assert 2 <= len(axis.ticks()) <= 6
        assert len(axis.time_ticks()) <= 6


@given(st.lists(st.integers(), max_size=40))
def test_thinned_keeps_the_first_and_the_order(found: list[int]) -> None:
    kept = thinned(found)
    assert len(kept) <= 5
    assert kept[:1] == found[:1]
    assert all(value in found for value in kept)


courses = st.lists(st.floats(-10, 10), min_size=1, max_size=300).map(
    lambda losses: [(step, loss) for step, loss in enumerate(losses, start=1)]
)


@given(courses, st.integers(1, 20))
def test_means_keep_the_mean(course: list[tuple[int, float]], width: int) -> None:
    whole = len(course) // width * width
    found = means(course[:whole], width)
    assert len(found) == whole // width
    total = sum(value for _, value in found) * width
    assert total == pytest.approx(sum(value for _, value in course[:whole]), abs=1e-6)


@given(courses, st.integers(3, 40))
def test_every_keeps_first_last_and_lowest(course: list[tuple[int, float]], most: int) -> None:
    kept = every(course, most)
    assert len(kept) <= most + 1
    assert kept == sorted(set(kept))
    assert {course[0], course[-1]} <= set(kept)
    assert min(loss for _, loss in kept) == min(loss for _, loss in course)


@given(courses, st.lists(st.integers(1, 300), unique=True).map(sorted))
def test_split_loses_no_point(course: list[tuple[int, float]], starts: list[int]) -> None:
    parts = split(course, [start + 0.5 for start in starts])
    assert [point for part in parts for point in part] == course
    for part in parts:
        assert not any(part[0][0] <= start < part[-1][0] for start in starts)


@given(st.integers(1, 5000))
def test_ranks_have_both_ends(count: int) -> None:
    found = ranks(count)
    assert (found[0], found[-1]) == (0, count - 1)
    assert len(found) <= 62
    assert found == sorted(set(found))


@given(st.integers(0, 100_000))
def test_more_pictures_have_fewer_dots(pictures: int) -> None:
    assert 48 <= dots_each(pictures + 1) <= dots_each(pictures) <= 600


spots = st.tuples(st.floats(60, 340), st.floats(40, 260))


@given(st.lists(spots, min_size=1, max_size=5))
def test_labels_of_a_few_points_are_apart(points: list[tuple[float, float]]) -> None:
    texts = [f"run {number}" for number in range(len(points))]
    frame = Box(0, 0, 400, 300)
    labels = place_labels(points, texts, frame)
    assert [label.said for label in labels] == texts
    for index, label in enumerate(labels):
        assert label.box.inside(frame)
        assert label.box.right - label.box.left == pytest.approx(len(label.said) * LETTER)
        assert not any(label.box.overlaps(other.box) for other in labels[:index])
