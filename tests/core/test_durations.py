from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.core.durations import Duration, never, over


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


def test_a_time_is_over_when_its_seconds_have_passed_or_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, told = [100.0], [False]
    monkeypatch.setattr("permllm.core.durations.time.monotonic", lambda: now[0])
    limited, unlimited = over(5.0, lambda: told[0]), over(None, lambda: told[0])
    endless = over(None)
    for now[0], told[0], ended in ((104.9, False, False), (105.0, False, True), (101, True, True)):
        assert limited() is ended
        assert unlimited() is told[0]
        assert endless() is never() is False
