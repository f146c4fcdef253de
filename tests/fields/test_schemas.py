"""The JSON Schema of classes."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from permllm.fields.options import describe_options
from permllm.fields.schemas import object_schema, with_constant
from permllm.option import option


@attrs.frozen
class One:
    """One of two."""

    source: ClassVar[str] = "one"
    size: int


@attrs.frozen
class Other:
    """The other one."""

    source: ClassVar[str] = "other"


@attrs.frozen(kw_only=True)
class Options:
    """Some options."""

    needed: str = option(help="what it is called", choices=("a", "b"))
    steps: int | None = option(3, help="how many", minimum=1, maximum=9)
    part: One | Other = Other()
    old: bool = option(False, help="an old one", deprecated="use steps")


SCHEMA: dict[str, Any] = object_schema(describe_options(Options))


def test_no_other_keys_and_what_is_required() -> None:
    assert SCHEMA["additionalProperties"] is False
    assert SCHEMA["required"] == ["needed"]
    assert "required" not in object_schema(describe_options(Options), optional=["needed"])


def test_properties_have_help_default_range_and_choices() -> None:
    assert SCHEMA["properties"]["needed"] == {
        "type": "string",
        "enum": ["a", "b"],
        "description": "what it is called",
    }
    steps = SCHEMA["properties"]["steps"]
    assert (steps["default"], steps["description"]) == (3, "how many")
    # A range is of the numbers alone.
    assert {"type": "integer", "minimum": 1, "maximum": 9} in steps["anyOf"]
    assert {"type": "null"} in steps["anyOf"]


def test_editors_know_what_is_deprecated() -> None:
    old = SCHEMA["properties"]["old"]
    assert old["deprecated"] is True
    assert old["description"] == "an old one (deprecated: use steps)"


def test_classes_of_a_union_are_told_by_their_tag() -> None:
    one, other = SCHEMA["properties"]["part"]["anyOf"]
    assert one["properties"]["source"] == {"const": "one"}
    assert one["required"] == ["source", "size"]
    assert other["required"] == ["source"]


def test_the_constant_comes_first() -> None:
    schema = with_constant({"properties": {"a": {}}, "required": ["a"]}, "name", "ria")
    assert list(schema["properties"]) == ["name", "a"]
    assert schema["required"] == ["name", "a"]
