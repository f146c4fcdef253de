"""Trees of errors: all that is wrong is kept, each with its way."""

from __future__ import annotations

from typing import Any

import pytest

from permllm.fields.errors import ERRORS, MOST_ERRORS, FieldError, at, each, leaves, shown


def refuse_negative(key: Any, item: int) -> int:
    if item < 0:
        raise FieldError(f"{item} is negative")
    return 2 * item


def places(error: Exception) -> list[tuple[tuple[Any, ...], str]]:
    return [(place, str(leaf)) for place, leaf in leaves(error)]


def test_what_fits_is_made_in_order() -> None:
    assert each([("a", 1), ("b", 2)], refuse_negative) == [2, 4]
    assert each([], refuse_negative) == []


def test_everything_that_does_not_fit_is_kept_with_its_way() -> None:
    def inner(key: str, items: list[int]) -> list[int]:
        return each(enumerate(items), refuse_negative)

    with pytest.raises(ERRORS) as caught:
        each([("a", [1, -2, -3]), ("b", [4]), ("c", [-5])], inner)
    assert places(caught.value) == [
        (("a", 1), "-2 is negative"),
        (("a", 2), "-3 is negative"),
        (("c", 0), "-5 is negative"),
    ]
    assert places(FieldError("alone")) == [((), "alone")]


def test_only_so_many_errors_are_looked_for() -> None:
    tried: list[int] = []

    def fails(key: int, item: int) -> int:
        tried.append(key)
        return refuse_negative(key, item)

    with pytest.raises(ERRORS):
        each(enumerate([-1] * 10_000), fails)
    assert len(tried) == MOST_ERRORS


def test_other_errors_are_nobodys_field() -> None:
    def breaks(key: str, item: int) -> None:
        raise KeyError(key)

    with pytest.raises(KeyError):
        each([("a", 1)], breaks)


def test_an_error_of_one_key_of_a_whole() -> None:
    assert places(at("name", FieldError("unknown"))) == [(("name",), "unknown")]


def test_what_an_error_says_of_itself() -> None:
    error = FieldError("no", "try yes", at_key=True)
    assert (str(error), error.hint, error.at_key, error.missing) == ("no", "try yes", True, False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("abc", "the text 'abc'"),
        ("a" * 70, f"the text '{'a' * 60}'"),
        ([1], "a list"),
        ({}, "a mapping"),
        (None, "nothing"),
        (True, "true"),
        (False, "false"),
        (1.5, "1.5"),
        (10**70, "1" + "0" * 59),
    ],
)
def test_values_in_messages(value: Any, text: str) -> None:
    assert shown(value) == text
