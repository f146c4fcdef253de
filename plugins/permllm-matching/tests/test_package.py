"""permllm finds the plugin, and its README shows a valid pipeline and every option."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
from permllm_matching.learner import Matching

from permllm.pipeline.reading import read_text
from permllm.registry import Registry
from permllm.testing import check_plugin

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def test_the_plugin() -> None:
    check_plugin("permllm_matching.plugin", adds={"permutation": ["matching"]})


def test_the_learner_comes_through_the_entry_point(registry: Registry) -> None:
    assert registry.component("permutation", "matching") is Matching


def test_the_readmes_pipeline_is_valid(registry: Registry) -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    pipeline = read_text(shown, "README.md", ROOT, registry)
    assert pipeline.layers.permutation == Matching(block=64, steps=32)


def test_the_comparison_is_valid(registry: Registry) -> None:
    path = ROOT / "pipelines/compare.yaml"
    pipeline = read_text(path.read_text(encoding="utf-8"), path.name, ROOT, registry)
    assert pipeline.matrix is not None
    named = [value["name"] for values in pipeline.matrix.values() for value in values]
    assert {"none", "cp", "lcp", "matching"} <= set(named)


def test_the_readme_lists_every_option() -> None:
    _, _, table = README.partition("| what it shapes | options |")
    listed = re.findall(r"`(\w+)`", table.partition("\n\n")[0])
    assert {field.name for field in attrs.fields(Matching)} <= set(listed)
