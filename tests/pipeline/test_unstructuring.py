"""Resolved pipelines: everything spelled out, and back to the same pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import permllm
from permllm.components import Metric
from permllm.pipeline.reading import (
    differences,
    dump_yaml,
    load_plain_yaml,
    read_mapping,
    read_text,
    resolved,
    study_of_text,
)
from permllm.pipeline.unstructuring import published
from permllm.registry import Registry

RICH = """\
calibration: {dataset: {name: text, path: a.txt}, sequences: 3}
layers:
  metric: {name: ria, exponent: 1}
  permutation: {name: lcp, preset: paper, dropout: null}
  overrides: [{match: "*", pattern: 4:8, pruner: sparsegpt}]
evaluate: [perplexity, {name: perplexity, dataset: {name: text, path: ~/b.txt}, sizes: [2, 3]}]
export: [masked]
track: {mlflow: {experiment: e}}
matrix: {pattern: [1:4, 2:4], layers.permutation: [none, {name: lcp, preset: paper}]}
"""


@pytest.mark.parametrize("text", ["", "track: {}", RICH])
def test_reads_back_to_an_equal_pipeline(read: Any, toys: Registry, text: str) -> None:
    pipeline = read(text)
    data = resolved(pipeline)
    assert read_mapping(data, toys) == pipeline
    elsewhere = Path("/else/where")
    assert read_text(dump_yaml(data), "q.yaml", elsewhere, toys) == pipeline
    assert resolved(read_mapping(data, toys)) == data


def test_everything_is_spelled_out(read: Any) -> None:
    data = resolved(read(RICH))
    assert data["layers"]["permutation"] == {
        "name": "lcp",
        "passes": 50,
        "block": 64,
        "start": "none",
        "dropout": None,
    }
    assert data["calibration"]["dataset"] == {"name": "text", "path": "/base/a.txt"}
    assert data["track"] == {"mlflow": {"experiment": "e"}}
    assert data["matrix"]["layers.permutation"][1]["passes"] == 50
    assert data["pattern"] == "2:4"


def test_yaml_quotes_what_yaml_1_1_takes_for_a_number(read: Any) -> None:
    assert 'pattern: "2:4"' in dump_yaml(resolved(read()))


def test_differences_are_dotted_keys_with_both_values(read: Any) -> None:
    old = resolved(read("layers: {permutation: lcp}"))
    new = resolved(read("layers: {permutation: {name: lcp, block: 32}}\nexport: [masked]"))
    assert differences(old, old) == []
    assert differences(old, new) == [
        "layers.permutation.block: 64 → 32",
        "export: [] → (absent)",
        "export.0.name: (absent) → 'masked'",
    ]


def test_a_kept_pipeline_is_loaded_as_plain_data(read: Any, tmp_path: Path) -> None:
    data = resolved(read(RICH))
    path = tmp_path / "pipeline.yaml"
    path.write_text(dump_yaml(data), encoding="utf-8")
    assert differences(load_plain_yaml(path), data) == []


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(words, plain, min_size=1, max_size=3))
def test_dumped_plain_data_is_read_back(tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text(dump_yaml(data), encoding="utf-8")
    assert load_plain_yaml(path) == data


def test_names_that_two_packages_share_are_qualified(toys: Registry) -> None:
    @attrs.frozen
    class Other(Metric):
        """Another."""

        name = "wanda"

        def scores(self, weight: Any, statistics: Any) -> Any:
            return weight

    class Plugin:
        @permllm.hookimpl
        def permllm_metrics(self) -> list[type]:
            return [Other]

    registry = Registry()
    for info, plugin in toys.manager.list_name_plugin():
        registry.add(plugin, info, distribution="toys")
    registry.add(Plugin(), "other", distribution="other")
    text = (
        "model: {source: hub, id: x}\npattern: 2:4\n"
        "matrix: {layers.metric: ['other:wanda', 'toys:wanda', ria]}\n"
    )
    study = study_of_text(text, "a.yaml", Path("/base"), registry)
    data = resolved(study.pipeline, registry)
    assert data["layers"]["metric"] == {"name": "other:wanda"}
    assert read_mapping(data, registry) == study.pipeline
    assert [cell.label for cell in study.cells] == ["other:wanda", "toys:wanda", "ria"]


def test_what_is_published_tells_of_no_machine() -> None:
    data = {
        "track": {"mlflow": {"uri": "sqlite:////home/me/mlflow.db"}},
        "model": {"path": "/home/me/my llama"},
        "evaluate": [{"path": "C:\\texts\\a.txt"}, {"id": "owner/name", "url": "file:///x/y.txt"}],
        "seed": 3,
    }
    assert published(data) == {
        "track": {},
        "model": {"path": "my llama"},
        "evaluate": [{"path": "a.txt"}, {"id": "owner/name", "url": "y.txt"}],
        "seed": 3,
    }
