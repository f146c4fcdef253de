"""permllm finds the plugin, and its README shows valid pipelines and every option."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
from permllm_maskllm.pruner import MaskLlm

from permllm.testing import check_plugin, read_pipeline

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN, PUBLISHED = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_plugin() -> None:
    check_plugin("permllm_maskllm.plugin", adds={"pruner": ["maskllm"]})


def test_the_readmes_pipelines_are_valid() -> None:
    assert read_pipeline(SHOWN, ROOT).layers.pruner == MaskLlm(steps=32, batch=4)
    published = read_pipeline(PUBLISHED, ROOT).layers
    assert published.window == "all"
    assert published.pruner == MaskLlm(**MaskLlm.presets["paper"])


def test_the_comparison_is_valid() -> None:
    text = (ROOT / "pipelines/compare.yaml").read_text(encoding="utf-8")
    pipeline = read_pipeline(text, ROOT)
    assert pipeline.matrix is not None
    named = [value["name"] for values in pipeline.matrix.values() for value in values]
    assert {"mask", "maskllm", "none", "lcp"} <= set(named)


def test_the_readme_lists_every_option_with_its_default() -> None:
    _, _, table = README.partition("| what it shapes |")
    listed = re.findall(r"`(\w+)` \(([\w.-]+)\)", table.partition("\n\n")[0])
    assert len(listed) == len(dict(listed))
    assert dict(listed) == {
        field.name: shown(getattr(MaskLlm(), field.name)) for field in attrs.fields(MaskLlm)
    }


def shown(default: Any) -> str:
    """A default as the README writes it."""
    return str(default) if isinstance(default, float) else str(default).lower()
