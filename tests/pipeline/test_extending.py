"""Extending: what of a base stands, where its mistakes are, and which bases are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.models.sources import DirectorySource, HubSource
from permllm.pipeline.extending import MAX_BASES
from permllm.pipeline.parsing import MAX_BYTES, MAX_DEPTH, MAX_NODES
from permllm.pipeline.reading import (
    blaming,
    dump_yaml,
    load_plain_yaml,
    read_mapping,
    read_pipeline,
    read_study,
    resolved,
)
from permllm.pipeline.schema import Pipeline
from permllm.registry import Registry

BASE = """\
model: {source: directory, path: model}
pattern: 2:4
calibration: {sequences: 8, length: 32}
layers:
  metric: ria
  permutation: {name: lcp, passes: 9, block: 32}
evaluate: [perplexity]
"""

Extended = Callable[..., Pipeline]


@pytest.fixture
def extended(tmp_path: Path, toys: Registry) -> Extended:
    """The pipeline of ``own.yaml``, which extends ``shared/base.yaml``."""
    (tmp_path / "shared").mkdir()

    def read(own: str, base: str = BASE, *settings: str) -> Pipeline:
        (tmp_path / "shared/base.yaml").write_text(base)
        (tmp_path / "own.yaml").write_text(f"extends: shared/base.yaml\n{own}")
        return read_pipeline(tmp_path / "own.yaml", toys, settings)

    return read


def refusal(read: Callable[..., Any], *arguments: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        read(*arguments)
    return caught.value


def test_mappings_are_merged_and_the_rest_replaced(extended: Extended, tmp_path: Path) -> None:
    pipeline = extended(
        "calibration: {length: 64, dataset: {name: text, path: own.txt}}\n"
        "layers: {permutation: {block: 16}}\nevaluate: []\nseed: 3\n"
    )
    assert (pipeline.calibration.sequences, pipeline.calibration.length) == (8, 64)
    learner: Any = pipeline.layers.permutation
    assert (learner.name, learner.passes, learner.block) == ("lcp", 9, 16)
    assert pipeline.layers.metric.name == "ria"
    assert pipeline.evaluate == ()
    assert (pipeline.seed, pipeline.name, pipeline.pattern) == (3, "own", Pattern(2, 4))
    # Paths start from the folder of the file that has them.
    assert pipeline.model == DirectorySource(tmp_path / "shared/model")
    assert pipeline.calibration.dataset.path == tmp_path / "own.txt"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("base", "own", "learner"),
    [
        ("{name: lcp, passes: 9}", "{name: cp, rounds: 1}", ("cp", "rounds", 1)),
        ("{name: lcp, passes: 9}", "cp", ("cp", "rounds", 3)),
        ("{name: lcp, passes: 9}", "lcp", ("lcp", "passes", 4)),
        ("{name: lcp, passes: 9}", "{name: lcp, block: 8}", ("lcp", "passes", 9)),
        ("lcp", "{block: 8}", ("lcp", "block", 8)),
        ("cp", "{name: lcp, block: 8}", ("lcp", "block", 8)),
    ],
)
def test_another_component_has_none_of_the_options(
    extended: Extended, base: str, own: str, learner: Any
) -> None:
    head = "model: {source: directory, path: model}\npattern: 2:4\n"
    own_text, base_text = (f"layers: {{permutation: {one}}}\n" for one in (own, base))
    made = extended(own_text, head + base_text).layers.permutation
    name, option, value = learner
    assert (made.name, getattr(made, option)) == (name, value)


def test_a_model_of_another_source_replaces_the_old_one(extended: Extended) -> None:
    assert extended("model: {source: hub, id: a/b}").model == HubSource("a/b")


def test_a_section_that_is_null_has_its_defaults(extended: Extended) -> None:
    assert extended("calibration: null").calibration.sequences == 16


def test_matrices_are_merged_and_excluded_by_what_the_base_calls_it(
    tmp_path: Path, toys: Registry
) -> None:
    axes = "matrix:\n  layers.permutation: {plain: none, long: {name: lcp, passes: 9}}\n"
    (tmp_path / "base.yaml").write_text(BASE + axes)
    (tmp_path / "own.yaml").write_text(
        "extends: base.yaml\nmatrix:\n  layers.permutation: {short: cp}\n"
        "  exclude: [{layers.permutation: none}]\n"
    )
    cells = read_study(tmp_path / "own.yaml", toys).cells
    assert [cell.label for cell in cells] == ["long", "short"]


def test_what_is_resolved_is_whole_and_reads_back(
    extended: Extended, toys: Registry, tmp_path: Path
) -> None:
    pipeline = extended("layers: {window: all, metric: {exponent: 1}}")
    (tmp_path / "whole.yaml").write_text(dump_yaml(resolved(pipeline)))
    plain = load_plain_yaml(tmp_path / "whole.yaml")
    assert "extends" not in plain
    assert read_mapping(plain, toys) == pipeline


def test_bases_have_bases(extended: Extended, tmp_path: Path) -> None:
    (tmp_path / "root.yaml").write_text(BASE)
    pipeline = extended("seed: 1", "extends: ../root.yaml\nseed: 2\npattern: 4:8\n")
    assert (pipeline.seed, pipeline.pattern) == (1, Pattern(4, 8))
    assert pipeline.model == DirectorySource(tmp_path / "shared/../model")


@pytest.mark.parametrize(
    ("own", "base", "file", "line", "says"),
    [
        ("seed: 1\n", BASE + "seeed: 1\n", "shared/base.yaml", 8, "unknown key 'seeed'"),
        ("seed: x\n", BASE, "own.yaml", 2, "expected a whole number"),
        ("", BASE.replace("9", "0"), "shared/base.yaml", 6, "passes"),
        ("layers:\n  permutation:\n    bloc: 3\n", BASE, "own.yaml", 4, "option 'bloc'"),
        ("", "pattern: [", "shared/base.yaml", 1, "not valid YAML"),
        ("", "- 1", "shared/base.yaml", 1, "must be a mapping"),
        ("", "pattern: 2:4\n", "own.yaml", 1, "'model' is missing"),
        ("", "permllm: 99\n" + BASE, "shared/base.yaml", 1, "newer permllm"),
        ("", "x: " + "[" * MAX_DEPTH * 2, "shared/base.yaml", 1, "nested deeper"),
        ("", f"x: [{'1, ' * MAX_NODES}]", "shared/base.yaml", 1, "more than"),
        ("", "#" * (MAX_BYTES + 1), "shared/base.yaml", None, "too many"),
    ],
)
def test_mistakes_are_where_they_stand(
    extended: Extended, tmp_path: Path, own: str, base: str, file: str, line: int, says: str
) -> None:
    error = refusal(extended, own, base)
    assert (error.file, error.line) == (str(tmp_path / file), line)
    assert says in error.message


def test_files_together_hold_no_more_than_one(extended: Extended, tmp_path: Path) -> None:
    half = "1, " * (MAX_NODES // 2)
    error = refusal(extended, f"y: [{half}]\n", f"x: [{half}]\n")
    assert (error.file, error.line) == (str(tmp_path / "own.yaml"), 1)
    assert "together with what it extends" in error.message


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("bsae.yaml", "there is no file"),
        ("shared", "there is no file"),
        ("own.yaml", "extends this file itself"),
        ("other.yaml", "extends this file itself"),
        ("[a, b]", "expected the path of another pipeline file, not a list"),
        ("''", "expected the path"),
        ("null", "expected the path"),
        ('"\\0"', "expected the path"),
    ],
)
def test_bases_that_are_none(tmp_path: Path, toys: Registry, value: str, says: str) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "shared").mkdir()
    (tmp_path / "other.yaml").write_text("seed: 1\nextends: own.yaml\n")
    (tmp_path / "own.yaml").write_text(f"seed: 1\nextends: {value}\n")
    error = refusal(read_pipeline, tmp_path / "own.yaml", toys)
    holder = "other.yaml" if value == "other.yaml" else "own.yaml"
    assert (error.file, error.line) == (str(tmp_path / holder), 2)
    assert says in error.message
    if value == "bsae.yaml":
        assert "did you mean 'base.yaml'?" in str(error.hint)


def test_chains_end(tmp_path: Path, toys: Registry) -> None:
    for number in range(MAX_BASES + 2):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    error = refusal(read_pipeline, tmp_path / "0.yaml", toys)
    assert "more than 20 files" in error.message


def test_settings_do_not_extend(extended: Extended) -> None:
    error = refusal(extended, "", BASE, "extends=base.yaml")
    assert "--set extends: only a file can extend another" in error.message


def test_later_mistakes_find_the_base(extended: Extended, tmp_path: Path) -> None:
    extended("seed: 1\n")
    with pytest.raises(UserError) as caught, blaming(tmp_path / "own.yaml", "layers", "metric"):
        raise UserError("no")
    assert (caught.value.file, caught.value.line) == (str(tmp_path / "shared/base.yaml"), 5)
