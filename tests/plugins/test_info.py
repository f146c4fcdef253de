"""What a plugin is called, and what is remembered of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.plugins.info import PluginInfo, normal


@pytest.mark.parametrize(
    ("info", "package", "text"),
    [
        (PluginInfo("mine", "permllm-mine", "1.2"), "permllm-mine", "permllm-mine 1.2"),
        (PluginInfo("mine"), "mine", "mine"),
        (PluginInfo("mine", file=Path("/a/mine.py")), "mine", "/a/mine.py"),
    ],
)
def test_a_plugin_is_called_after_its_package_or_file(
    info: PluginInfo, package: str, text: str
) -> None:
    assert (info.package, str(info)) == (package, text)


def test_names_of_plugins_and_packages_mean_it_however_they_are_spelt() -> None:
    info = PluginInfo("own_metric", "Permllm.Own-Metric", "1")
    for name in ("own-metric", "OWN.METRIC", " permllm__own_metric "):
        assert info.is_called(name)
    assert not info.is_called("metric")


def test_what_comes_with_permllm() -> None:
    assert PluginInfo("builtin", "PermLLM").built_in
    assert not PluginInfo("permllm", "permllm-mine").built_in


def test_all_that_is_wrong_is_remembered() -> None:
    info = PluginInfo("mine")
    assert (info.status, info.error) == ("loaded", None)
    info.broke("no hook")
    info.broke("no class")
    assert (info.status, info.error) == ("broken", "no hook; no class")


@given(st.text(alphabet="aB-_. ", max_size=12))
def test_a_name_is_normal_once(name: str) -> None:
    assert normal(normal(name).strip()) == normal(name).strip()
