"""Numbers as people read them."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm import units
from permllm.comparing import table
from permllm.fields import types
from permllm.observers import mlflow_store, stages
from permllm.runs import layers
from permllm.units import clock, duration, memory, number


@pytest.mark.parametrize("module", [units, table, types, layers, stages, mlflow_store])
def test_examples_in_docstrings(module) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


@given(st.floats(0, 1e7))
def test_durations_are_short(seconds: float) -> None:
    assert len(duration(seconds)) <= 13
    assert clock(seconds).count(":") in (1, 2)


@given(st.floats(1e-3, 1e12))
def test_numbers_keep_about_four_digits(value: float) -> None:
    assert float(number(value)) == pytest.approx(value, rel=6e-3)


def test_what_is_not_finite() -> None:
    assert number(math.inf) == "∞"
    assert number(math.nan) == "–"
    assert duration(math.inf) == "–"


def test_memory_has_a_unit() -> None:
    assert memory(2**30) == "1.0 GiB"
    assert memory(2**20) == "1 MiB"
