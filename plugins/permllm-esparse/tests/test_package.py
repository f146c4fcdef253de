"""permllm finds the plugin, and the pipelines that it shows are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from permllm_esparse.metric import ESparse
from permllm_esparse.shuffle import ESparseShuffle

from permllm.components import Component
from permllm.testing import check_plugin, read_pipeline

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PIPELINES = {
    "README.md": re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[0],
    "compare.yaml": (ROOT / "pipelines/compare.yaml").read_text(encoding="utf-8"),
}


def test_the_plugin() -> None:
    check_plugin(
        "permllm_esparse.plugin",
        adds={"metric": ["esparse"], "permutation": ["esparse-shuffle"]},
    )


def test_the_components_come_through_the_entry_point() -> None:
    layers = read_pipeline("layers: {metric: esparse, permutation: esparse-shuffle}").layers
    assert (layers.metric, layers.permutation) == (ESparse(), ESparseShuffle())


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_are_valid(name: str) -> None:
    pipeline = read_pipeline(PIPELINES[name], ROOT)
    assert pipeline.matrix is not None
    named = [value["name"] for values in pipeline.matrix.values() for value in values]
    assert {"esparse", "esparse-shuffle"} <= set(named)


@pytest.mark.parametrize("component", [ESparse, ESparseShuffle])
def test_the_readme_lists_every_option_with_its_default(component: type[Component]) -> None:
    _, _, table = README.partition(f"| `{component.name}` | default | |\n")
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", table.partition("\n\n")[0], re.M))
    defaults = {name: getattr(component(), name) for name in rows}
    assert list(rows) == [field.name for field in component.__attrs_attrs__]  # type: ignore[attr-defined]
    assert rows == {name: str(value).replace("True", "true") for name, value in defaults.items()}
