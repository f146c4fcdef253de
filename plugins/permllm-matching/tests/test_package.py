"""permllm finds the plugin, and its README shows a valid pipeline and every option."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
from permllm_matching.learner import Matching

from permllm.testing import check_plugin, read_pipeline

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_plugin() -> None:
    check_plugin("permllm_matching.plugin", adds={"permutation": ["matching"]})


def test_the_readmes_pipeline_is_valid() -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert read_pipeline(shown, ROOT).layers.permutation == Matching(block=64, steps=32)


def test_the_comparison_is_valid() -> None:
    text = (ROOT / "pipelines/compare.yaml").read_text(encoding="utf-8")
    pipeline = read_pipeline(text, ROOT)
    assert pipeline.matrix is not None
    named = [value["name"] for values in pipeline.matrix.values() for value in values]
    assert {"none", "cp", "lcp", "matching"} <= set(named)


def test_the_readme_lists_every_option() -> None:
    _, _, table = README.partition("| what it shapes | options |")
    listed = re.findall(r"`(\w+)`", table.partition("\n\n")[0])
    assert {field.name for field in attrs.fields(Matching)} <= set(listed)
