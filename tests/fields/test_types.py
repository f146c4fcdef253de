"""The table of types: what is read, what is said, and that the JSON Schema agrees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from permllm.components import Evaluator, Metric
from permllm.core.durations import Duration
from permllm.core.patterns import Pattern
from permllm.fields.errors import ERRORS, leaves
from permllm.fields.options import describe_options, option_types
from permllm.fields.reading import Reader
from permllm.fields.schemas import object_schema
from permllm.fields.types import kind_of, type_text
from permllm.fields.writing import writer


@attrs.frozen
class Inner:
    """A class of a field."""

    size: int = 3


@attrs.frozen
class One:
    """One of two."""

    source: ClassVar[str] = "one"
    size: int


@attrs.frozen
class Other:
    """The other one."""

    source: ClassVar[str] = "other"


READ: dict[Any, list[tuple[Any, Any]]] = {
    bool: [(True, True)],
    int: [(3, 3)],
    float: [(3, 3.0), (0.5, 0.5)],
    str: [("a", "a")],
    Path: [("a", Path("/base/a")), ("/b", Path("/b"))],
    Pattern: [("2:4", Pattern(2, 4))],
    Duration: [("1h30m", Duration(5400))],
    Any: [(None, None), ([1], [1])],
    Literal["a", 1]: [("a", "a"), (1, 1)],
    int | None: [(None, None), (2, 2)],
    int | Literal["all"]: [("all", "all"), (2, 2)],
    One | Other: [({"source": "one", "size": 2}, One(2)), ({"source": "other"}, Other())],
    tuple[int, ...]: [([], ()), ([1, 2], (1, 2))],
    Sequence[str]: [(["a"], ("a",))],
    dict[str, float]: [({}, {}), ({"a": 1}, {"a": 1.0})],
    Mapping[str, tuple[int, ...]]: [({"a": [1]}, {"a": (1,)})],
    Inner: [(None, Inner()), ({"size": 1}, Inner(1))],
}
"""Types with plain data, and what is made of it."""

WRONG: dict[Any, list[Any]] = {
    bool: [1, "true", None],
    int: [True, 3.5, "3", None, 2**63],
    float: [True, "3", float("nan"), float("inf"), 1e30],
    str: [3, True, None, []],
    Path: ["", 3],
    Pattern: ["4:2", "2-4", 2],
    Duration: ["5", 5, "0s"],
    Literal["a", 1]: ["b", True, 1.0],
    int | None: ["a", False],
    int | Literal["all"]: ["al", None],
    One | Other: [{"source": "two"}, {"source": ["one"]}, {}, "one", {"source": "one"}],
    tuple[int, ...]: ["a", {"a": 1}, [1, "a"], None],
    dict[str, float]: [[1], {"a": "b"}],
    Inner: [{"sise": 1}, [1], False],
}
"""Types with plain data that does not fit."""


def cases(of: dict[Any, list[Any]]) -> list[Any]:
    return [pytest.param(hint, each, id=f"{hint}-{each}") for hint in of for each in of[hint]]


def schema(hint: Any) -> Draft202012Validator:
    """Of a mapping whose only key has a type."""
    cls = attrs.make_class("Held", {"held": attrs.field(type=hint)}, frozen=True)
    data = object_schema(describe_options(cls))
    Draft202012Validator.check_schema(data)
    return Draft202012Validator(data)


@pytest.mark.parametrize(("hint", "case"), cases(READ))
def test_what_is_read_is_allowed_and_read_back(hint: Any, case: tuple[Any, Any]) -> None:
    reader, (data, value) = Reader(Path("/base")), case
    made = reader.read(data, hint)
    assert (made, type(made)) == (value, type(value))
    assert reader.read(writer().unstructure(made), hint) == made
    assert schema(hint).is_valid({"held": data})


@pytest.mark.parametrize(("hint", "data"), cases(WRONG))
def test_what_does_not_fit_is_refused(hint: Any, data: Any) -> None:
    with pytest.raises(ERRORS):
        Reader().read(data, hint)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | Literal["all"], "a whole number or 'all'"),
        (tuple[Path, ...], "a list of paths"),
        (tuple[Evaluator, ...], "a list of evaluators"),
        (tuple[Pattern, ...], 'a list of patterns such as "2:4"'),
        (tuple[bool, ...], "a list of true or false"),
        (tuple[Metric | None, ...], "a list of metrics or null"),
        (tuple[int | Literal["all"], ...], "a list of whole numbers or 'all'"),
        (Evaluator, "an evaluator"),
        (Metric | None, "a metric or null"),
        (One | Other, "a mapping"),
        (dict[str, float], "a mapping of texts to numbers"),
        (Mapping[str, Any], "a mapping"),
        (dict[str, tuple[int, ...]], "a mapping of texts to lists of whole numbers"),
        (tuple[dict[str, Path], ...], "a list of mappings of texts to paths"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert type_text(hint) == words


@pytest.mark.parametrize("hint", [set[int], tuple[int, str], dict[int, str], object, complex])
def test_other_types_have_no_row(hint: Any) -> None:
    assert kind_of(hint) is None
    cls = attrs.make_class("Held", {"held": attrs.field(type=tuple[hint, ...])}, frozen=True)
    with pytest.raises(TypeError, match="which no file can spell"):
        option_types(cls)


def test_errors_carry_their_way() -> None:
    data = {"a": [{"size": 1}, {"size": "x", "sise": 2}], "b": 3}
    with pytest.raises(ERRORS) as caught:
        Reader().read(data, dict[str, tuple[Inner, ...]])
    places = {place: str(leaf) for place, leaf in leaves(caught.value)}
    assert set(places) == {("a", 1, "size"), ("a", 1, "sise"), ("b",)}
    assert places["a", 1, "size"] == "expected a whole number, not the text 'x'"


def test_the_same_data_is_made_once() -> None:
    data, reader = {"size": 1}, Reader()
    first, second = reader.read([data, data], tuple[Inner, ...])
    assert first is second
    assert reader.read(dict(data), Inner) is not first


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(READ, key=str)), plain)
def test_any_data_is_read_or_refused(hint: Any, data: Any) -> None:
    try:
        made = Reader(Path("/base")).read(data, hint)
    except ERRORS:
        return
    assert hint is Any or Reader(Path("/base")).read(writer().unstructure(made), hint) == made
