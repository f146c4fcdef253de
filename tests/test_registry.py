"""The registry: what it accepts, what it refuses, and that nobody's plugin crashes it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

import permllm
from permllm.components import Metric, option
from permllm.errors import UserError
from permllm.registry import PluginInfo, Registry


@attrs.frozen
class Power(Metric):
    """The weight to a power."""

    name = "power"
    exponent: float = option(2.0, help="the power", minimum=0)

    def scores(self, weight: Any, statistics: Any) -> Any:
        return weight


def metrics_plugin(*classes: Any) -> object:
    """A plugin that adds these metrics."""

    class Plugin:
        @permllm.hookimpl
        def permllm_metrics(self) -> Any:
            return list(classes)

    return Plugin()


def with_metrics(*classes: Any) -> tuple[Registry, PluginInfo]:
    registry = Registry()
    info = registry.add(metrics_plugin(*classes), "mine", distribution="my-package", version="1.2")
    return registry, info


def test_a_component_is_found_by_name_and_by_package() -> None:
    registry, info = with_metrics(Power)
    assert registry.component("metric", "power") is Power
    assert registry.component("metric", "my-package:power") is Power
    assert registry.component("metric", "My_Package:power") is Power
    assert registry.component("metric", "mine:power") is Power
    assert list(registry.components("metric")) == ["power"]
    assert info.components == {"metric": ("power",)}
    assert (str(info), info.status, registry.warnings) == ("my-package 1.2", "loaded", [])


def test_an_unknown_name_suggests_the_nearest() -> None:
    registry, _ = with_metrics(Power)
    with pytest.raises(UserError, match=r"unknown metric 'powr'[\s\S]*mean 'power'"):
        registry.component("metric", "powr")
    with pytest.raises(UserError, match="pip install absent"):
        registry.component("metric", "absent:power")


def test_a_missing_component_tells_of_broken_plugins() -> None:
    registry, _ = with_metrics(3)
    with pytest.raises(UserError, match=r"unknown metric 'bad'[\s\S]*used: my-package 1.2 "):
        registry.component("metric", "bad")


def test_a_clash_is_an_error_only_when_the_bare_name_is_used() -> None:
    @attrs.frozen
    class Other(Power):
        """Another one."""

        name = "power"

    registry, _ = with_metrics(Power)
    registry.add(metrics_plugin(Other), "other", distribution="other-package", version="3")
    assert registry.component("metric", "my-package:power") is Power
    assert registry.component("metric", "other-package:power") is Other
    assert list(registry.components("metric")) == ["my-package:power", "other-package:power"]
    assert registry.reference_of(Other) == "other-package:power"
    with pytest.raises(UserError) as caught:
        registry.component("metric", "power")
    assert "my-package 1.2 and other-package 3 both have the metric 'power'" in str(caught.value)
    assert "my-package:power or other-package:power" in str(caught.value)
    assert registry.warnings == [
        "my-package 1.2 and other-package 3 both have the metric 'power'; "
        "name it as 'package:power'"
    ]


def test_the_built_in_component_keeps_its_name() -> None:
    @attrs.frozen
    class Other(Power):
        """Another one."""

        name = "wanda"

    registry = Registry.load()
    registry.add(metrics_plugin(Other), "other", distribution="other-package", version="3")
    assert registry.component("metric", "wanda").__module__ == "permllm.metrics.wanda"
    assert registry.component("metric", "other-package:wanda") is Other
    assert registry.component("metric", "permllm:wanda") is registry.component("metric", "wanda")
    assert {"wanda", "other-package:wanda"} <= set(registry.components("metric"))
    assert registry.reference_of(registry.component("metric", "wanda")) == "wanda"
    assert registry.reference_of(Other) == "other-package:wanda"
    assert registry.warnings == [
        "the metric 'wanda' is permllm's own, although other-package 3 has one, too; "
        "name that as 'other-package:wanda'"
    ]
    # Switched off, it makes room.
    registry = Registry.load(disabled=["permllm.metrics"])
    registry.add(metrics_plugin(Other), "other")
    assert registry.component("metric", "wanda") is Other
    assert registry.disabled == ("permllm-metrics",)


def test_life_cycle_hooks_reach_plugins() -> None:
    seen = []

    class Watcher:
        @permllm.hookimpl
        def permllm_warning(self, message: str) -> None:
            seen.append(message)

    registry = Registry()
    registry.add(Watcher(), "watcher")
    registry.manager.hook.permllm_warning(message="look")
    assert seen == ["look"]


def test_each_registry_stands_alone() -> None:
    first, second = Registry.load(), Registry.load()
    first.add(metrics_plugin(Power), "mine")
    assert "power" in first.components("metric")
    assert "power" not in second.components("metric")
