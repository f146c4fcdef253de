"""Plain data is walked, looked up and compared."""

from __future__ import annotations

from typing import Any

import pytest

from permllm.pipeline.plain import ABSENT, dotted, identity, value_at, walk

DATA: dict[str, Any] = {"a": [1, {"b": None}], "c": {}, "d": []}


def test_every_scalar_and_what_is_empty_is_walked_over() -> None:
    assert list(walk(DATA)) == [(("a", 0), 1), (("a", 1, "b"), None), (("c",), {}), (("d",), [])]
    assert all(value_at(DATA, place) == value for place, value in walk(DATA))


@pytest.mark.parametrize(
    ("place", "value"),
    [("", DATA), ("a.0", 1), ("a.1.b", None), ("a.2", ABSENT), ("a.x", ABSENT), ("c.x", ABSENT),
     ("a.0.b", ABSENT)],
)  # fmt: skip
def test_what_is_not_there_is_absent(place: str, value: Any) -> None:
    assert value_at(DATA, place.split(".") if place else ()) is value


def test_places_are_written_with_dots() -> None:
    assert dotted(("evaluate", 0, "length")) == "evaluate.0.length"


def test_values_are_the_same_with_their_types() -> None:
    class Text(str):
        """As those of a base, which know their folder."""

    assert identity({"a": 1, "b": [Text("c")]}) == identity({"b": ["c"], "a": 1})
    assert len({identity(value) for value in (1, 1.0, True, "1", [1], {"a": 1}, None)}) == 7
