from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.core.durations import Duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("1.5m", 90), (" 2m5s ", 125)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert Duration.parse(text).seconds == seconds


@pytest.mark.parametrize("text", ["", "30", "s", "5 m", "1m1h", "-5s", "0s", "..s", "1..2s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time such as '30s'"):
        Duration.parse(text)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_impossible_times_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be above zero"):
        Duration(seconds)


@given(st.integers(1, 10**7))
def test_what_is_written_is_read_again(seconds: int) -> None:
    assert Duration.parse(str(Duration(float(seconds)))).seconds == seconds
