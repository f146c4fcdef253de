"""Components of which each is wanted once."""

from __future__ import annotations

import attrs

from permllm.distinct import distinct


@attrs.frozen
class Part:
    """Has no hash."""

    shares: dict[str, float]


def test_equal_ones_are_there_once_in_order() -> None:
    one, two = Part({"a": 1.0}), Part({"b": 1.0})
    found = distinct([two, one, Part({"b": 1.0}), two])
    assert found[0] is two
    assert found[1:] == [one]
