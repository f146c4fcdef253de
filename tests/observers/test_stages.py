"""Shares and remaining times of stages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.observers.stages import Stage, span, started, training_line


def test_remaining_time_counts_down_between_reports() -> None:
    stage = started("lcp", "learning", 0, 10, now=100.0)
    assert stage.left(101.0) is None
    stage.advance(2, 10, now=104.0)
    assert stage.left(104.0) == pytest.approx(16.0)
    assert stage.left(105.0) == pytest.approx(15.0)
    assert stage.left(1000.0) == 0.0


def test_speed_counts_from_the_first_report() -> None:
    stage = started(None, "learning", 5, 10, now=0.0)
    assert stage.left(1.0) is None
    stage.advance(6, 10, now=2.0)
    assert stage.left(2.0) == pytest.approx(8.0)


def test_the_total_may_change() -> None:
    stage = started("a", "learning", 0, 30, now=0.0)
    stage.advance(1, 5, now=2.0)
    assert (stage.share, stage.left(2.0)) == (0.2, 8.0)
    stage.advance(4, 4, now=9.0)
    assert stage.finished


def test_single_unit_has_no_speed() -> None:
    stage = started(None, "loading the model", 0, 1, now=0.0)
    assert not stage.measurable
    stage.advance(1, 1, now=5.0)
    assert stage.left(5.0) is None
    assert stage.finished


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1e6))
def test_share_and_time_left_are_within_their_ranges(done: int, total: int, now: float) -> None:
    stage = Stage("a", "b", 0.0, total, done, now / 2)
    assert 0 <= stage.share <= 1
    assert stage.left(now) is None or stage.left(now) >= 0


def test_names_of_layers_are_short() -> None:
    assert span(("model.layers.0", "model.layers.1")) == "model.layers.0 to 1"
    assert span(("transformer.h.3",)) == "transformer.h.3"


def test_training_line_leaves_out_what_nobody_follows() -> None:
    figures = {"loss": 0.5, "learning_rate": 0.1, "held_out_loss": 1.25}
    assert training_line(figures, 3, (3, 1.25)) == "loss 0.5, held-out loss 1.250"
    assert training_line({"loss": 0.5}, 4, (3, 1.25)) == "loss 0.5, held-out loss 1.250 at step 3"
    assert training_line({"temperature": 0.5}, 1, None) == "temperature 0.5"
