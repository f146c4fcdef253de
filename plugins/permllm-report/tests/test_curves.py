"""Loss curves: courses that are long are averaged, and told in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from permllm_report.curves import loss_chart, thinned

from permllm.reporting import read_record

courses = st.lists(st.floats(-10, 10), min_size=1, max_size=300).map(
    lambda losses: [(step, loss) for step, loss in enumerate(losses, start=1)]
)


@given(courses, st.integers(1, 40))
def test_thinned_keeps_the_mean_of_whole_parts(course: list[tuple[int, float]], most: int) -> None:
    drawn = thinned(course, most)
    assert len(drawn) <= most
    width = -(-len(course) // most)
    whole = len(course) // width
    total = sum(value for _, value in drawn[:whole]) * width
    assert total == pytest.approx(sum(value for _, value in course[: whole * width]), abs=1e-6)
    assert drawn == sorted(drawn)


def test_a_chart_tells_its_held_out_losses(study, made, tmp_path: Path) -> None:
    study(tmp_path, [made("none"), made("lcp", steps=12), made("long", steps=400)])
    _, none, short, long = read_record(tmp_path).runs
    assert loss_chart(none, "a") is None
    chart, averaged = loss_chart(short, "b"), loss_chart(long, "c")
    assert chart is not None
    assert averaged is not None
    assert chart.held_out == "Held out: 0.2848 first, 0.1772 last, best 0.1772 at step 12."
    assert (chart.averaged, averaged.averaged) == (False, True)
    assert 'aria-label="Training of lcp: loss from 0.3456 to 0.1272, held out' in chart.picture
