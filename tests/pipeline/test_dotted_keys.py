"""``--set``: what it reaches, and that its errors name the setting."""

from __future__ import annotations

from typing import Any

import pytest

LCP_MATRIX = "matrix: {layers.permutation: [none, {name: lcp, passes: 10}]}"


def test_values_are_yaml(read: Any) -> None:
    pipeline = read("", "seed=7", "layers.skip=[a, b]", "layers.metric={name: ria, exponent: 2}")
    assert pipeline.seed == 7
    assert pipeline.layers.skip == ("a", "b")
    assert pipeline.layers.metric.exponent == 2.0
    assert str(read("", "pattern=4:8").pattern) == "4:8"


def test_a_bare_name_becomes_a_mapping(read: Any) -> None:
    pipeline = read("layers: {permutation: cp}", "layers.permutation.rounds=9")
    assert pipeline.layers.permutation.rounds == 9
    pipeline = read("", "layers.permutation=lcp", "layers.permutation.passes=3")
    assert pipeline.layers.permutation.passes == 3


def test_defaults_are_written_out_on_the_way(read: Any) -> None:
    pipeline = read("", "layers.permutation.passes=3", "track.mlflow.experiment=mine")
    assert (pipeline.layers.permutation.name, pipeline.layers.permutation.passes) == ("lcp", 3)
    assert pipeline.track[0].experiment == "mine"


def test_indices_of_lists(read: Any) -> None:
    text = "evaluate: [perplexity, {name: perplexity, length: 8}]"
    pipeline = read(text, "evaluate.0.length=4", "evaluate.1.dataset={name: text, path: t.txt}")
    assert [evaluator.length for evaluator in pipeline.evaluate] == [4, 8]
    assert pipeline.evaluate[1].dataset.path.name == "t.txt"


def test_inside_the_matrix(read: Any) -> None:
    pipeline = read(LCP_MATRIX, "matrix.layers.permutation.1.passes=3", "matrix.seed=[1, 2]")
    assert pipeline.matrix["layers.permutation"][1]["passes"] == 3
    assert pipeline.matrix["seed"] == [1, 2]
    assert read(LCP_MATRIX, "matrix=null").matrix is None
    # Without the matrix nothing overrules a setting.
    assert read(LCP_MATRIX, "matrix=null", "layers.permutation.passes=3").matrix is None


def test_inside_a_study(read: Any) -> None:
    text = (
        "matrix: {layers.permutation: {a: none, b: {name: lcp, passes: 10}}, "
        "include: [{layers.metric: ria}], exclude: [{layers.permutation: b}]}"
    )
    pipeline = read(
        text,
        "matrix.layers.permutation.b.passes=3",
        "matrix.include.0.layers.metric.exponent=2",
        "matrix.include.0.layers.window=1",
        "matrix.exclude.0.layers.permutation=a",
        "matrix.repeat=4",
    )
    assert pipeline.matrix["layers.permutation"]["b"]["passes"] == 3
    assert pipeline.matrix["include"] == [
        {"layers.metric": {"name": "ria", "exponent": 2.0}, "layers.window": 1}
    ]
    assert pipeline.matrix["exclude"] == [{"layers.permutation": "a"}]
    assert pipeline.matrix["repeat"] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["seed"], "--set seed: expected KEY=VALUE"),
        (["=3"], "--set =3: expected KEY=VALUE"),
        (["a..b=3"], "expected KEY=VALUE"),
        (["sed=3"], "--set sed: unknown key 'sed'\n  hint: did you mean 'seed'?"),
        (["seed=x"], "--set seed: expected a whole number, not the text 'x'"),
        (["seed=-1"], "--set seed: seed must be between 0 and"),
        (["seed=[1"], "--set seed: this is not valid YAML"),
        (["layers.permutation.pases=3"], "--set layers.permutation.pases: unknown option 'pases'"),
        (["layers.permutation=lpc"], "--set layers.permutation: unknown permutation 'lpc'"),
        (["seed.a=3", "x=1"], "--set seed.a: "),
        (["evaluate.1.length=3"], "--set evaluate.1.length: 'evaluate' is a list with 1 entry"),
        (["evaluate.x.length=3"], "so 'x' should be a number from 0 to 0"),
        (["export=[]", "export.0=masked"], "--set export.0: 'export' is an empty list"),
        (["matrix.seed=3"], "--set matrix.seed: the matrix needs a list of values for 'seed'"),
        (["matrix.sed=[3]"], "unknown key 'sed'"),
        (["matrix.repeat=many"], "--set matrix.repeat: expected a whole number of repeats"),
        (["matrix.include.3.seed=1"], "--set matrix.include.3.seed: "),
    ],
)
def test_mistakes_name_the_setting(refused: Any, settings: list[str], message: str) -> None:
    assert message in refused("evaluate: [perplexity]\nseed: 3", *settings)


def test_a_setting_that_the_matrix_overrules_is_refused(refused: Any) -> None:
    for key in ("layers.permutation=cp", "layers.permutation.passes=3"):
        message = refused(LCP_MATRIX, key)
        assert "the matrix sets 'layers.permutation', so this would have no effect" in message
        assert "--set matrix=null" in message
