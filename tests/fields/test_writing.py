"""Values as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import attrs

from permllm.components import Metric
from permllm.core.durations import Duration
from permllm.core.patterns import Pattern
from permllm.fields.writing import fields_of, writer
from permllm.option import option


@attrs.frozen
class Tagged:
    """One of several."""

    source: ClassVar[str] = "here"
    path: Path = Path("/a")


@attrs.frozen
class Toy(Metric):
    """A metric."""

    name = "toy"
    exponent: float = 0.5

    def scores(self, weight: Any, statistics: Any) -> Any:
        return weight


@attrs.frozen(kw_only=True)
class Everything:
    """Fields of many kinds."""

    pattern: Pattern
    budget: Duration
    parts: tuple[Tagged, ...] = (Tagged(),)
    metric: Any = Toy()
    old: int = option(2, help="an old one", deprecated="use pattern")


def everything(**options: int) -> Everything:
    return Everything(pattern=Pattern(2, 4), budget=Duration(90), **options)


def test_every_default_is_spelled_out_but_of_what_is_deprecated() -> None:
    assert writer().unstructure(everything()) == {
        "pattern": "2:4",
        "budget": str(Duration(90)),
        "parts": [{"source": "here", "path": "/a"}],
        "metric": {"name": "toy", "exponent": 0.5},
    }
    assert writer().unstructure(everything(old=3))["old"] == 3


def test_components_by_another_name_or_by_their_names_alone() -> None:
    named = writer(lambda cls: f"package:{cls.name}").unstructure(Toy(exponent=1))
    assert named == {"name": "package:toy", "exponent": 1}
    assert writer(bare=True).unstructure(Toy()) == "toy"


def test_fields_without_the_tag() -> None:
    assert fields_of(Tagged(), writer()) == {"path": "/a"}


def test_the_same_object_is_written_once() -> None:
    converter, section = writer(), Tagged()
    assert converter.unstructure(section) is converter.unstructure(section)
    assert converter.unstructure(Tagged()) is not converter.unstructure(section)
