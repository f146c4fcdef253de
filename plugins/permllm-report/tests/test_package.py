"""permllm finds the plugin, and its README shows a valid setting and every option."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import click
from permllm_report.observer import Report
from permllm_report.plugin import permllm_commands

from permllm.testing import check_plugin, read_pipeline

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_plugin() -> None:
    check_plugin("permllm_report.plugin", adds={"observer": ["report"]})


def test_the_readmes_setting_is_valid() -> None:
    (track,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert Report() in read_pipeline(track).track


def test_the_readme_lists_every_option() -> None:
    group = click.Group()
    permllm_commands(group)
    options = [name for parameter in group.commands["report"].params for name in parameter.opts]
    _, _, table = README.partition("| option | default | meaning |\n")
    listed = re.findall(r"`([\w-]+)`", table.partition("\n\n")[0])
    assert {field.name for field in attrs.fields(Report)} <= set(listed)
    assert {name for name in options if name.startswith("--")} <= set(listed)
