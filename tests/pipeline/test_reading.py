"""Reading: what is accepted, and each kind of mistake with its place and its hint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.models.sources import DirectorySource, HubSource
from permllm.pipeline.reading import read_mapping, read_pipeline
from permllm.registry import Registry


def test_defaults_of_the_shortest_pipeline(read: Any) -> None:
    pipeline = read()
    assert pipeline.name == "p"
    assert pipeline.pattern == Pattern(2, 4)
    assert pipeline.model == DirectorySource(Path("/base/model"))
    assert pipeline.calibration.dataset.name == "python-docs"
    assert (pipeline.calibration.sequences, pipeline.calibration.length) == (16, 256)
    assert pipeline.layers.metric.name == "wanda"
    assert (pipeline.layers.permutation.block, pipeline.layers.window) == (64, "all")
    assert [observer.name for observer in pipeline.track] == ["mlflow"]
    assert pipeline.matrix is None


@pytest.mark.parametrize("head", ["", "%YAML 1.1\n---\n"])
@pytest.mark.parametrize("spelt", ["2:4", '"2:4"', "'2:4'"])
def test_pattern_needs_no_quotes_in_either_yaml(read: Any, head: str, spelt: str) -> None:
    text = f"{head}model: {{source: hub, id: a/b}}\npattern: {spelt}\n"
    assert read(text, whole=True).pattern == Pattern(2, 4)


def test_components_by_name_and_by_mapping(read: Any) -> None:
    pipeline = read(
        "layers: {metric: {name: ria, exponent: 1}, permutation: none, window: 2}\n"
        "evaluate: [perplexity, {name: perplexity, dataset: {name: text, path: b.txt}}]\n"
        "export: [masked]\n"
    )
    assert pipeline.layers.metric.exponent == 1.0
    assert isinstance(pipeline.layers.metric.exponent, float)
    assert pipeline.layers.window == 2
    assert pipeline.evaluate[0].dataset.name == "python-docs"
    assert pipeline.evaluate[1].dataset.path == Path("/base/b.txt")
    assert pipeline.export[0].name == "masked"


def test_sources_by_tag(read: Any) -> None:
    text = "model: {source: hub, id: a/b, revision: v1}\npattern: 1:4\n"
    assert read(text, whole=True).model == HubSource("a/b", "v1")


def test_track_by_list_and_by_mapping(read: Any) -> None:
    assert read("track: {}").track == ()
    assert [o.name for o in read("track: [events, mlflow]").track] == ["events", "mlflow"]
    observers = read("track: {mlflow: {experiment: mine}, events: }").track
    assert [o.name for o in observers] == ["mlflow", "events"]
    assert observers[0].experiment == "mine"


def test_home_folder_and_absolute_paths(
    read: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pipeline = read("evaluate: [{name: perplexity, dataset: {name: text, path: ~/a.txt}}]")
    assert pipeline.evaluate[0].dataset.path == tmp_path / "a.txt"
    pipeline = read("evaluate: [{name: perplexity, dataset: {name: text, path: /x/a.txt}}]")
    assert pipeline.evaluate[0].dataset.path == Path("/x/a.txt")


def test_preset_is_overridden_by_what_the_file_says(read: Any) -> None:
    learner = read("layers: {permutation: {name: lcp, preset: paper, passes: 10}}")
    learner = learner.layers.permutation
    assert (learner.passes, learner.start, learner.dropout, learner.block) == (10, "none", 0.0, 64)


def test_overrides_and_aliases_and_merges(read: Any) -> None:
    pipeline = read(
        "layers:\n"
        "  permutation: {<<: &base {name: lcp, block: 32}, passes: 9}\n"
        "  overrides:\n"
        "    - &one {match: '*.0.*', pattern: 4:8, metric: ria}\n"
        "    - {<<: *one, match: '*.1.*', skip: true}\n"
    )
    assert (pipeline.layers.permutation.block, pipeline.layers.permutation.passes) == (32, 9)
    first, second = pipeline.layers.overrides
    assert (first.pattern, first.metric.name, first.skip) == (Pattern(4, 8), "ria", None)
    assert (second.match, second.pattern, second.skip) == ("*.1.*", Pattern(4, 8), True)


def test_in_memory_data_reads_alike(read: Any, toys: Registry) -> None:
    data = {
        "name": "p",
        "model": {"source": "directory", "path": Path("model")},
        "pattern": "2:4",
        "layers": {"skip": ("lm_head",)},
    }
    assert read_mapping(data, toys, base_dir=Path("/base")) == read()


def test_file_gives_name_and_base_folder(toys: Registry, tmp_path: Path) -> None:
    path = tmp_path / "my first.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: {source: directory, path: m}\npattern: 2:4\n")
    pipeline = read_pipeline(path, toys)
    assert pipeline.name == "my first"
    assert pipeline.model == DirectorySource(tmp_path / "m")


LEARNER = "layers: {permutation: {name: lcp, "

MISTAKES = {
    "unknown key": ("patern: 3", "p.yaml:3:1: unknown key 'patern'", "did you mean 'pattern'?"),
    "nested key": ("layers: {metrics: ria}", "p.yaml:3:10: unknown key 'metrics'", "'metric'"),
    "unknown component": ("layers: {metric: wnada}", "3:18: unknown metric 'wnada'", "'wanda'"),
    "by mapping": ("layers: {metric: {name: wnada}}", "3:25: unknown metric", "mean 'wanda'"),
    "unknown option": (LEARNER + "blok: 3}}", "3:35: unknown option 'blok' of", "mean 'block'"),
    "no name": ("layers: {metric: {exponent: 1}}", "3:18: this metric needs a 'name'", "ria"),
    "two errors": ("seed: x\nlayers: 3", "3:7: expected a whole number", "not the text 'x'"),
    "bool for int": ("seed: true", "3:7: expected a whole number, not true", ""),
    "text for int": ('seed: "3"', "3:7: expected a whole number, not the text '3'", ""),
    "float for int": ("seed: 3.0", "3:7: expected a whole number, not 3.0", ""),
    "int for bool": (
        "layers: {permutation: {name: cp, verbose: 1}}",
        "3:43: expected true or false, not 1",
        "",
    ),
    "bool for float": (
        "layers: {metric: {name: ria, exponent: true}}",
        "3:40: expected a number, not true",
        "",
    ),
    "number for text": ("name: 3", "3:7: expected a text, not 3", "quotes"),
    "text for list": ("evaluate: perplexity", "3:11: expected a list of evaluators", "[a, b]"),
    "list for mapping": ("calibration: [1]", "3:14: expected a mapping, not a list", ""),
    "item of a list": (
        "evaluate: [{name: perplexity, sizes: [1, x]}]",
        "3:42: expected a whole number",
        "",
    ),
    "window": ("layers: {window: some}", "3:18: expected a whole number or 'all'", ""),
    "window 0": ("layers: {window: 0}", "3:18: window must be at least 1, not 0", ""),
    "residual": (
        "layers: {residual: share}",
        "3:20: residual must be one of free, shared,",
        "'shared'?",
    ),
    "shared residual": (
        "layers: {residual: shared, window: 2}",
        "3:20: residual: shared finds one order for all layers at once, so it needs window: all",
        "",
    ),
    "too small": ("calibration: {sequences: -1}", "3:26: sequences must be between 1 and", "-1"),
    "too large": (LEARNER + "passes: 1001}}", "3:43: passes must be between 1 and 1000", ""),
    "beyond floats": (LEARNER + "dropout: 1.5}}", "3:44: dropout must be between 0 and 1", ""),
    "huge": (LEARNER + f"block: {10**30}}}}}", "3:42:", "too large"),
    "longer than Python reads": ("seed: " + "9" * 5000, "3:7:", "too long for a number"),
    "not finite": ("layers: {metric: {name: ria, exponent: .nan}}", "3:40:", "finite"),
    "choice": (LEARNER + "start: cq}}", "3:42: start must be one of none, cp", "mean 'cp'?"),
    "own validator": (
        "layers: {pruner: {name: sparsegpt, dampening: 0.5}}",
        "3:47: dampening must not be one half",
        "",
    ),
    "user error of a component": (
        "layers: {pruner: {name: sparsegpt, dampening: 0.25}}",
        "3:18: a quarter needs an extra",
        "pip install 'permllm[quarter]'",
    ),
    "component that breaks": (
        "layers: {pruner: {name: sparsegpt, dampening: 0.125}}",
        "3:18: toys broke: KeyError: an eighth",
        "",
    ),
    "preset": (LEARNER + "preset: papr}}", "3:43: unknown preset 'papr'", "mean 'paper'?"),
    "no presets": (
        "layers: {permutation: {name: cp, preset: paper}}",
        "3:34: unknown option 'preset' of permutation 'cp'",
        "rounds",
    ),
    "required option": (
        "evaluate: [{name: perplexity, dataset: text}]",
        "3:40: 'path' is missing: the file",
        "",
    ),
    "device": ("device: gpu", "3:9: device must be", "'gpu'"),
    "name": ("name: a/b", "3:7: name must be", "'a/b'"),
    "observer": ("track: {mlflw: {}}", "3:9: unknown observer 'mlflw'", "mean 'mlflow'?"),
    "observer's option": ("track: {mlflow: {exp: a}}", "3:18: unknown option 'exp'", "experiment"),
    "exporter twice": (
        "export: [masked, {name: masked}]",
        "3:9: the exporter 'masked' is there twice, and both would write one folder",
        "write one here",
    ),
    "observer twice": ("track: [events, events]", "3:8: the observer 'events' is there twice", ""),
    "package": ("layers: {metric: 'no-such-pkg:wanda'}", "3:18:", "pip install no-such-pkg"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_their_place(refused: Any, case: str) -> None:
    text, place, more = MISTAKES[case]
    message = refused(text)
    assert place in message
    assert more in message


WHOLE = {
    "N >= M": ("pattern: 4:2\nmodel: {source: hub, id: x}", ["p.yaml:1:10:", "4:2"]),
    "no pattern": ("model: {source: hub, id: x}", ["p.yaml:1:1: 'pattern' is missing"]),
    "misspelt comes first": ("modle: 1\npattern: 2:4", ["p.yaml:1:1: unknown key 'modle'"]),
    "no source": ("model: {path: x}\npattern: 2:4", ["1:8: 'source' is missing", "gguf"]),
    "source": ("model: {source: gguff, path: x}\npattern: 2:4", ["1:17:", "mean 'gguf'?"]),
    "bare source": ("model: x\npattern: 2:4", ["1:8: expected a mapping with 'source'"]),
    "source's key": ("model: {source: gguf, pat: x}\npattern: 2:4", ["1:23:", "mean 'path'?"]),
    "newer": ("permllm: 2\nnews: 1", ["p.yaml:1:10: this file needs a newer permllm"]),
    "version 0": (
        "permllm: 0\nmodel: {source: hub, id: x}\npattern: 2:4",
        ["1:10: permllm must be 1, not 0"],
    ),
    "list": ("- a", ["p.yaml:1:1: a pipeline file must be a mapping, but it is a list"]),
    "text": ("hello", ["p.yaml:1:1:", "the text 'hello'"]),
    "empty": ("# nothing\n", ["p.yaml:1:1:", "it is empty"]),
}


@pytest.mark.parametrize("case", WHOLE)
def test_mistakes_of_whole_files(refused: Any, case: str) -> None:
    text, parts = WHOLE[case]
    message = refused(text, whole=True)
    assert [part for part in parts if part not in message] == []


def test_unreadable_files(toys: Registry, tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            read_pipeline(path, toys)
        return str(caught.value)

    assert "there is no such file" in said(tmp_path / "none.yaml")
    assert "cannot be read" in said(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_bytes(b"name: a\nb: \xff\n")
    assert "a.yaml:2: this is not UTF-8 text" in said(path)
    path.write_bytes(b"#" * (2**20 + 1))
    assert "too many for a pipeline file" in said(path)


def test_a_default_that_is_not_installed_is_said_last(toys: Registry) -> None:
    data = {"model": {"source": "hub", "id": "x"}, "pattern": "2:4"}
    with pytest.raises(UserError) as caught:
        read_mapping(data, Registry())
    assert "the default of 'calibration' cannot be used: the default of 'dataset'" in str(
        caught.value
    )
    with pytest.raises(UserError, match="unknown key 'sed'"):
        read_mapping(data | {"sed": 1}, Registry())
