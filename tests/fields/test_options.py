"""What is said of options, and which values and types they may have."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import pytest

from permllm.core.patterns import Pattern
from permllm.fields.declared import reference
from permllm.fields.errors import FieldError
from permllm.fields.options import check_range, describe_options, option_types, range_text
from permllm.option import option


@attrs.frozen(kw_only=True)
class Options:
    """Some options."""

    steps: int = option(50, help="steps to take", minimum=1, maximum=9)
    kind: str = option("a", help="which", choices=("a", "b"))
    window: int | Literal["all"] = "all"
    pattern: Pattern = option(help="N:M")
    metric: Any = reference("wanda", help="how important")
    old: int = option(2, help="an old one", deprecated="use steps")
    sizes: tuple[int, ...] = (1, 2)


def test_options_are_described_in_their_order() -> None:
    described = {info.name: info for info in describe_options(Options)}
    assert list(described) == ["steps", "kind", "window", "pattern", "metric", "old", "sizes"]
    steps = described["steps"]
    assert (steps.default, steps.help, steps.range) == (50, "steps to take", "between 1 and 9")
    assert described["kind"].range == "one of a, b"
    assert described["window"].type_text == "a whole number or 'all'"
    assert (described["pattern"].required, described["pattern"].default) == (True, None)
    assert (described["metric"].required, described["metric"].default) == (False, "wanda")
    assert described["old"].deprecated == "use steps"
    # As a file spells it.
    assert described["sizes"].default == [1, 2]


def test_types_are_resolved_from_text() -> None:
    assert option_types(Options)["window"] == int | Literal["all"]
    assert option_types(Options)["pattern"] is Pattern


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        (None, "option 'x' has no type"),
        (set[int], "option 'x' has the type set.int., which no file can spell"),
        ("Nowhere", "the type of option 'x' cannot be found: name 'Nowhere'"),
        ("int |", "the type of option 'x' cannot be found"),
    ],
)
def test_a_type_that_no_file_can_spell_is_refused(hint: Any, message: str) -> None:
    cls = attrs.make_class("Cls", {"x": attrs.field(type=hint)})
    cls.__annotations__ = {"x": hint}
    with pytest.raises(TypeError, match=message):
        option_types(cls)


def test_inner_classes_are_looked_into() -> None:
    inner = attrs.make_class("Inner", {"y": attrs.field(type=set[int])})
    outer = attrs.make_class("Outer", {"x": attrs.field(type=inner)})
    with pytest.raises(TypeError, match="option 'y' has the type"):
        option_types(outer)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ((None, None), ""),
        ((1, None), "at least 1"),
        ((None, 2), "at most 2"),
        ((0, 1), "between 0 and 1"),
        ((3, 3), "3"),
    ],
)
def test_ranges_in_words(limits: tuple[Any, Any], text: str) -> None:
    assert range_text(*limits) == text


def test_both_ends_of_a_range_are_in_it() -> None:
    limits = {"minimum": 1, "maximum": 9}
    for value in (1, 9, 2.5, "all", None, True):
        check_range("steps", value, limits)
    for value in (0, 9.5):
        with pytest.raises(FieldError, match=f"steps must be between 1 and 9, not {value}"):
            check_range("steps", value, limits)


def test_choices_are_said_with_the_nearest() -> None:
    limits = {"choices": ("cosine", "mse")}
    check_range("loss", "mse", limits)
    check_range("loss", None, limits)
    with pytest.raises(FieldError, match="loss must be one of cosine, mse") as caught:
        check_range("loss", "cosin", limits)
    assert "cosine" in (caught.value.hint or "")
