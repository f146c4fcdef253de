"""What is made of one object is made once; of an equal one, again."""

from __future__ import annotations

import pytest

from permllm.fields.once import Once


def test_the_same_object_gives_the_same() -> None:
    once, one, equal = Once(), [1], [1]
    first = once(lambda: object(), one)
    assert once(lambda: object(), one) is first
    assert once(lambda: object(), equal) is not first


def test_each_use_has_its_own() -> None:
    once, one = Once(), {"a": 1}
    assert once(lambda: "read", one, int) == "read"
    assert once(lambda: "written", one, str) == "written"
    assert once(lambda: "again", one, int) == "read"


def test_the_id_of_an_object_that_is_gone_is_nobody_elses() -> None:
    once = Once()
    assert [once(lambda n=n: n, [n]) for n in range(200)] == list(range(200))


def test_what_fails_is_tried_again() -> None:
    once, one = Once(), [1]

    def fail() -> None:
        raise ValueError("not yet")

    with pytest.raises(ValueError, match="not yet"):
        once(fail, one)
    assert once(lambda: "made", one) == "made"
