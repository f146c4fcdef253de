"""The JSON Schema accepts what the reader accepts, and refuses the usual mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from permllm.pipeline.jsonschema import pipeline_schema
from permllm.pipeline.reading import resolved
from permllm.registry import Registry

PIPELINES = Path(__file__).parents[2] / "pipelines"

HEAD = "model: {source: directory, path: m}\npattern: '2:4'\n"


@pytest.fixture(scope="module")
def validator(toys: Registry) -> Draft202012Validator:
    schema = pipeline_schema(toys)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def valid(validator: Draft202012Validator, text: str) -> bool:
    return bool(validator.is_valid(YAML(typ="safe", pure=True).load(HEAD + text)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "layers: {metric: {name: ria, exponent: 1}, permutation: cp, window: 3}",
        "layers: {permutation: {name: lcp, preset: paper}, window: all}",
        "layers: {metric: 'other-package:wanda', pruner: {name: 'other:x', strength: 3}}",
        "evaluate: [perplexity, {name: perplexity, dataset: {name: text, path: b.txt}}]",
        "track: {mlflow: {experiment: a}, events: }",
        "track: [events, {name: mlflow, experiment: a}]",
        "track: {}",
        "matrix: {layers.permutation: [none, {name: lcp, block: 3}], seed: [1, 2]}",
        "matrix: {layers.permutation: {plain: none, other: {name: lcp}}, repeat: 3, "
        "include: [{pattern: 4:8}], exclude: [{layers.permutation: plain}]}",
    ],
)
def test_accepts(validator: Draft202012Validator, read: Any, text: str) -> None:
    assert valid(validator, text)
    if "other" not in text:
        assert validator.is_valid(resolved(read(text)))


def test_what_a_base_has_need_not_be_said_again(validator: Draft202012Validator) -> None:
    assert validator.is_valid({"extends": "base.yaml", "seed": 1})
    assert not validator.is_valid({"seed": 1})
    assert not validator.is_valid({"extends": ["base.yaml"]})


@pytest.mark.parametrize(
    "text",
    [
        "patern: 3",
        "layers: {metric: wnada}",
        "layers: {metric: {exponent: 1}}",
        "layers: {metric: {name: ria, exponent: 5}}",
        "layers: {metric: {name: ria, exponnt: 1}}",
        "layers: {permutation: {name: lcp, preset: papr}}",
        "layers: {permutation: {name: lcp, start: x}}",
        "layers: {window: some}",
        "seed: -1",
        "seed: 1.5",
        "evaluate: perplexity",
        "evaluate: [{name: perplexity, dataset: {name: text}}]",
        "track: {mlflow: {exp: 1}}",
        "matrix: {seed: []}",
        "matrix: {seed: 3}",
        "matrix: {seed: {}}",
        "matrix: {layers.permutation: {name: cp, rounds: 3}}",
        "matrix: {repeat: 0}",
        "matrix: {repeat: 101}",
        "matrix: {include: {seed: 3}}",
        "matrix: {seed: [1, 2], exclude: [{}]}",
        "matrix: {seed: [1, 2], include: [seed]}",
    ],
)
def test_refuses(validator: Draft202012Validator, refused: Any, text: str) -> None:
    assert not valid(validator, text)
    assert refused(text)


def test_options_carry_their_help_and_defaults(validator: Draft202012Validator) -> None:
    mappings = validator.schema["$defs"]["permutation"]["anyOf"]
    (lcp,) = [entry for entry in mappings if entry.get("title") == "lcp"]
    assert lcp["properties"]["passes"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
        "description": "passes over the text",
        "default": 4,
    }
    assert lcp["description"] == "Learned order."


@pytest.mark.parametrize("path", sorted(PIPELINES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_pipelines_are_valid(path: Path) -> None:
    schema = pipeline_schema(Registry.load())
    data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    errors = [error.message for error in Draft202012Validator(schema).iter_errors(data)]
    assert errors == []
