"""Components by name, with their options; the first mistake is said at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from permllm.errors import UserError
from permllm.fields.errors import FieldError, at
from permllm.pipeline.document import Origin
from permllm.pipeline.parsing import parse_yaml
from permllm.pipeline.schema import Layers, Pipeline
from permllm.pipeline.structuring import Structurer, first_error
from permllm.registry import Registry


@pytest.fixture
def structurer(toys: Registry) -> Structurer:
    return Structurer(toys, Path("/base"))


def document(text: str) -> Any:
    return parse_yaml(text, Origin(file="p.yaml"))


def test_a_component_by_its_name_alone_and_with_options(structurer: Structurer) -> None:
    layers = structurer.structure(document("{metric: ria, permutation: {name: none}}"), Layers)
    assert (layers.metric.name, layers.metric.exponent) == ("ria", 0.5)
    assert layers.permutation.name == "none"
    layers = structurer.structure(document("metric: {name: ria, exponent: 2}"), Layers)
    assert layers.metric.exponent == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metric: 3", "1:9: expected a metric"),
        ("metric: {exponent: 2}", "1:9: this metric needs a 'name'"),
        ("metric: {name: 3}", "1:9: this metric needs a 'name'"),
        ("metric: {name: rai}", "1:16: unknown metric 'rai'"),
        ("metric: {name: ria, exponnt: 2}", "1:21: unknown option 'exponnt' of metric 'ria'"),
        ("metric: {name: ria, exponent: 9}", "1:31: exponent must be between 0 and 4, not 9"),
        ("permutation: {name: lcp, preset: papr}", "unknown preset 'papr'"),
    ],
)
def test_mistakes_are_placed(structurer: Structurer, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        structurer.structure(document(text), Layers)
    assert message in str(caught.value)


def test_the_first_in_the_file_is_said_and_what_is_missing_last(structurer: Structurer) -> None:
    text = "device: gpu\nmodel: {source: directory, path: m}\nseed: x\nlayrs: 3\n"
    with pytest.raises(UserError, match=r"p\.yaml:3:7: expected a whole number"):
        structurer.structure(document(text), Pipeline)
    text = "model: {source: directory, path: m}\npatern: 2:4\n"
    with pytest.raises(UserError, match=r"p\.yaml:2:1: unknown key 'patern'"):
        structurer.structure(document(text), Pipeline)


def test_what_a_document_lacks(structurer: Structurer) -> None:
    missing = structurer.missing_keys(document("model: {source: directory}\nseed: x"), Pipeline)
    assert set(missing) == {("name",), ("model", "path"), ("pattern",)}
    whole = document("name: a\nmodel: {source: directory, path: m}\npattern: 2:4")
    assert structurer.missing_keys(whole, Pipeline) == ()


def test_an_error_without_a_place_stands_at_the_root() -> None:
    read = document("a: 1\nb: 2")
    assert str(first_error(read, ValueError("broken"))).startswith("p.yaml:1:1: broken")
    assert str(first_error(read, at("b", FieldError("wrong")))).startswith("p.yaml:2:4: wrong")
