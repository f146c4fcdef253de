"""Plain data becomes classes, strictly; what does not fit says where and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from permllm.errors import UserError
from permllm.fields.errors import ERRORS, leaves
from permllm.fields.reading import STRICT, Reader
from permllm.option import option


def _check_even(instance: Any, attribute: Any, value: int) -> None:
    if value % 2:
        raise ValueError(f"even must be even, not {value}")
    if value > 100:
        raise UserError("too much", hint="take less")
    if value == 66:
        raise RuntimeError("what is this")


@attrs.frozen(kw_only=True)
class Inner:
    """A section."""

    path: Path = Path("here")
    size: int = option(3, help="how large", minimum=1)


@attrs.frozen(kw_only=True)
class Outer:
    """A class with a section."""

    name: str = option(help="what it is called")
    inner: Inner = Inner()
    even: int = attrs.field(default=0, validator=_check_even)


def errors(data: Any, cls: type = Outer, **options: Any) -> list[tuple[tuple[Any, ...], str]]:
    with pytest.raises(ERRORS) as caught:
        Reader(**options).read(data, cls)
    return [(place, str(leaf)) for place, leaf in leaves(caught.value)]


def test_sections_are_read_and_the_rest_is_as_the_class_has_it() -> None:
    made = Reader(Path("/base")).read({"name": "a", "inner": {"path": "b"}}, Outer)
    assert made == Outer(name="a", inner=Inner(path=Path("/base/b")))
    assert Reader().read({"name": "a", "inner": None}, Outer) == Outer(name="a")


def test_everything_wrong_is_said_at_once() -> None:
    assert errors({"nam": "a", "inner": {"size": 0, "path": 1}, "even": "x"}) == [
        (("nam",), "unknown key 'nam'"),
        (("name",), "'name' is missing: what it is called"),
        (("inner", "path"), "expected a path, not 1"),
        (("inner", "size"), "size must be at least 1, not 0"),
        (("even",), "expected a whole number, not the text 'x'"),
    ]


def test_a_stranger_gets_the_nearest_name() -> None:
    with pytest.raises(ERRORS) as caught:
        Reader().read({"name": "a", "evn": 2}, Outer)
    ((_, leaf),) = leaves(caught.value)
    assert leaf.at_key
    assert "did you mean 'even'?" in leaf.hint


def test_what_a_class_refuses_is_placed_at_the_key_that_it_names() -> None:
    assert errors({"name": "a", "even": 3}) == [(("even",), "even must be even, not 3")]
    assert errors({"name": "a", "even": 102}) == [((), "too much")]
    assert errors({"name": "a", "even": 66}) == [
        ((), f"{__name__} broke: RuntimeError: what is this")
    ]


def test_a_section_is_a_mapping() -> None:
    assert errors([1]) == [((), "expected a mapping, not a list")]
    assert errors({"name": "a", "inner": 3}) == [(("inner",), "expected a mapping, not 3")]


def test_there_are_no_components_without_a_registry() -> None:
    with pytest.raises(ERRORS, match="there is no metric to be had here"):
        Reader().component("wanda", "metric")


def test_strict_readers_take_no_near_type() -> None:
    assert STRICT[float](3, float) == 3.0
    for cls, wrong in ((bool, 1), (int, True), (int, 1.0), (float, "1"), (str, 1)):
        with pytest.raises(ERRORS):
            STRICT[cls](wrong, cls)


@pytest.mark.parametrize("path", ["a/" + "n" * 256, "ü" * 128, "n/" * 2100, "a\ud800b"])
def test_a_path_that_no_file_can_have_is_refused(path: str) -> None:
    ((place, said),) = errors({"name": "a", "inner": {"path": path}})
    assert place == ("inner", "path")
    assert said.endswith(" is no path: no file can be called so")
    kept = Reader(Path("/")).read({"name": "a", "inner": {"path": "n" * 255}}, Outer)
    assert kept.inner.path == Path("/", "n" * 255)
