"""Errors say where, what and what to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.errors import UserError, did_you_mean, nearest


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({}, "no"),
        ({"file": "a.yaml"}, "a.yaml: no"),
        ({"file": "a.yaml", "line": 3, "column": 1}, "a.yaml:3:1: no"),
        ({"file": "a.yaml", "line": 3, "hint": "mend it"}, "a.yaml:3: no\n  hint: mend it"),
    ],
)
def test_a_place_is_told_as_far_as_it_is_known(place: dict[str, object], text: str) -> None:
    assert str(UserError("no", **place)) == text


@given(st.sets(st.text("abcdefgh", min_size=1), min_size=1))
def test_what_is_spelt_right_is_the_nearest(choices: set[str]) -> None:
    assert all(nearest(choice, choices) == choice for choice in choices)


def test_hints_list_what_there_is() -> None:
    assert did_you_mean("wnada", ["wanda", "ria"]) == "did you mean 'wanda'? known: ria, wanda"
    assert did_you_mean("xyz", ["wanda", "ria"]) == "known: ria, wanda"
    assert did_you_mean("xyz", []) == "known: (none)"
