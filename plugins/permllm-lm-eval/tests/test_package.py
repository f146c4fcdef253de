"""permllm finds the plugin, and its README shows a valid setting and every option."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
from permllm_lm_eval.evaluator import LmEval

from permllm.testing import check_plugin, read_pipeline

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_plugin() -> None:
    check_plugin("permllm_lm_eval.plugin", adds={"evaluator": ["lm-eval"]})


def test_the_readmes_setting_is_valid() -> None:
    evaluate, _ = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    _, shown = read_pipeline(evaluate, ROOT).evaluate
    assert shown == LmEval(tasks=("arc_easy", "my-quiz"), task_folders=(ROOT / "tasks",), limit=500)


def test_the_readme_lists_every_option() -> None:
    _, _, table = README.partition("| option | default | what it does |\n")
    listed = re.findall(r"^\| `(\w+)` \|", table.partition("\n\n")[0], re.MULTILINE)
    assert listed == [field.name for field in attrs.fields(LmEval)]
