"""Options that a later version will not have: who sets one is warned at its place."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest

import permllm
from permllm.components import Metric, Observer, PermutationLearner, Pruner, option
from permllm.errors import DeprecatedWarning
from permllm.fields.options import describe_options
from permllm.pipeline.jsonschema import pipeline_schema
from permllm.pipeline.reading import dump_yaml, read_text, resolved, study_of_text
from permllm.registry import Registry

HEAD = "model: {source: directory, path: m}\npattern: 2:4\n"


@attrs.frozen
class Aged(Metric):
    """A metric with an option that goes."""

    name = "aged"
    power: int = option(1, help="the power", deprecated="use exponent")
    exponent: float = option(1.0, help="the exponent")

    def scores(self, weight: Any, statistics: Any) -> Any:
        return weight


@attrs.frozen
class Around(PermutationLearner):
    """A learner with a metric."""

    name = "around"
    inner: Metric = option(factory=Aged, help="a metric")

    def learn(self, window: Any) -> dict[str, Any]:
        return {}


@attrs.frozen
class Mask(Pruner):
    """Nothing."""

    name = "mask"

    def prune(self, weight: Any, scores: Any, pattern: Any, statistics: Any) -> Any:
        return weight, scores


@attrs.frozen
class Watch(Observer):
    """An observer with an option that goes."""

    name = "watch"
    loud: bool = option(False, help="more words", deprecated="it does nothing")

    def watch(self, out: Path, warn: Any) -> object:
        return self


class Plugin:
    @permllm.hookimpl
    def permllm_metrics(self) -> list[type]:
        return [Aged]

    @permllm.hookimpl
    def permllm_permutations(self) -> list[type]:
        return [Around]

    @permllm.hookimpl
    def permllm_pruners(self) -> list[type]:
        return [Mask]

    @permllm.hookimpl
    def permllm_observers(self) -> list[type]:
        return [Watch]


@pytest.fixture(scope="module")
def registry() -> Registry:
    registry = Registry.load(disabled=["permllm.pruners"])
    registry.add(Plugin(), "aged")
    return registry


LAYERS = "layers: {metric: aged, permutation: around}\ntrack: {}\n"


def warned(text: str, registry: Registry, *settings: str) -> set[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_text(HEAD + text, "p.yaml", Path("/base"), registry, settings)
    assert all(issubclass(warning.category, DeprecatedWarning) for warning in caught)
    return {str(warning.message) for warning in caught}


@pytest.mark.parametrize(
    ("text", "settings", "place"),
    [
        (LAYERS.replace("aged", "{name: aged, power: 1}"), (), "p.yaml:3:31: option 'power' of"),
        (LAYERS.replace("around", "{name: around, inner: {name: aged, power: 2}}"), (), "p.yaml:3"),
        (LAYERS, ("layers.metric.power=2",), "--set layers.metric.power: option 'power' of metric"),
        (LAYERS + "matrix: {layers.metric.power: [1, 2]}", (), "p.yaml:5:10: option 'power' of"),
        (
            LAYERS + "matrix:\n  layers.metric: [aged, {name: aged, power: 4}]",
            (),
            "p.yaml:6:38: option 'power' of metric 'aged' is deprecated: use exponent",
        ),
    ],
)
def test_a_file_that_sets_one_is_warned_at_its_place(
    registry: Registry, text: str, settings: tuple[str, ...], place: str
) -> None:
    (message,) = warned(text, registry, *settings)
    assert message.startswith(place)
    assert message.endswith("is deprecated: use exponent")


@pytest.mark.parametrize("track", ["{watch: {loud: true}}", "[{name: watch, loud: true}]"])
def test_observers_in_a_mapping_and_in_a_list(registry: Registry, track: str) -> None:
    (message,) = warned(LAYERS.replace("track: {}", f"track: {track}"), registry)
    assert message.startswith("p.yaml:4:")
    assert message.endswith("option 'loud' of observer 'watch' is deprecated: it does nothing")


def test_one_place_is_said_once(registry: Registry) -> None:
    text = LAYERS.replace("aged", "{name: aged, power: 7}") + "matrix: {pattern: [2:4, 4:8]}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_text(HEAD + text, "once.yaml", Path("/base"), registry)
    assert len(caught) == 1


def test_nobody_is_warned_of_defaults(registry: Registry) -> None:
    assert warned(LAYERS, registry) == set()
    pipeline = read_text(HEAD + LAYERS, "p.yaml", Path("/base"), registry)
    text = dump_yaml(resolved(pipeline, registry))
    assert "power" not in text
    assert "exponent" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_text(text, "again.yaml", Path("/"), registry) == pipeline


def test_a_matrix_over_one_keeps_all_its_values(registry: Registry) -> None:
    text = HEAD + LAYERS + "matrix: {layers.metric.power: [1, 2]}"
    with pytest.warns(DeprecatedWarning):
        study = study_of_text(text, "p.yaml", Path("/base"), registry)
    assert study.pipeline.matrix == {"layers.metric.power": [1, 2]}
    assert [cell.pipeline.layers.metric.power for cell in study.cells] == [1, 2]


def test_editors_know(registry: Registry) -> None:
    schema = pipeline_schema(registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    (options,) = (
        entry["properties"]
        for entry in schema["$defs"]["metric"]["anyOf"]
        if entry.get("title") == "aged"
    )
    assert options["power"]["deprecated"] is True
    assert options["power"]["description"] == "the power (deprecated: use exponent)"
    assert "deprecated" not in options["exponent"]
    assert [info.deprecated for info in describe_options(Aged)] == ["use exponent", ""]
