"""Keys and defaults of fields, as their class declares them."""

from __future__ import annotations

from typing import Any

import attrs

from permllm.fields.declared import (
    default_of,
    key_of,
    left_out,
    once_per_class,
    option_fields,
    reference,
)
from permllm.option import option


@attrs.frozen(kw_only=True)
class Made:
    """Fields of every kind."""

    plain: int = 3
    needed: str
    _hidden: int = 1
    named: Any = reference("wanda", help="a component")
    fresh: list[int] = attrs.field(factory=lambda: [1])
    dependent: int = attrs.Factory(lambda self: self.plain, takes_self=True)
    computed: int = attrs.field(init=False, default=7)
    old: int = option(2, help="an old one", deprecated="use plain")


FIELDS = {key_of(field): field for field in option_fields(Made)}


def test_what_a_file_sets_are_the_arguments_by_their_names() -> None:
    assert list(FIELDS) == ["plain", "needed", "hidden", "named", "fresh", "dependent", "old"]


def test_defaults_are_values_or_references() -> None:
    assert default_of(FIELDS["plain"]) == 3
    assert default_of(FIELDS["needed"]) is attrs.NOTHING
    assert default_of(FIELDS["named"]) == "wanda"
    assert default_of(FIELDS["fresh"]) == [1]
    assert default_of(FIELDS["fresh"]) is not default_of(FIELDS["fresh"])
    # Only an instance could tell.
    assert default_of(FIELDS["dependent"]) is None


def test_a_deprecated_field_is_left_out_until_somebody_sets_it() -> None:
    assert left_out(FIELDS["old"], 2)
    assert not left_out(FIELDS["old"], 3)
    assert not left_out(FIELDS["plain"], 3)


def test_a_class_is_described_once() -> None:
    described = []

    @once_per_class
    def describe(cls: type) -> str:
        described.append(cls)
        return cls.__name__

    assert [describe(Made), describe(Made), describe(int)] == ["Made", "Made", "int"]
    assert described == [Made, int]
