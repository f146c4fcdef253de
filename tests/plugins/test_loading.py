"""What goes wrong while plugins are loaded is theirs, and the others work."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

import permllm
from permllm.components import Metric, option
from permllm.errors import DeprecatedWarning, UserError
from permllm.hookspecs import hookspec
from permllm.plugins.loading import plugin_entry_points, switched_off
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


def test_two_components_of_one_plugin_with_one_name() -> None:
    registry, _ = with_metrics(Power, Power)
    assert "it has two metrics called 'power'" in registry.warnings[0]


def test_hooks_that_will_go_are_told_and_work() -> None:
    class Specifications:
        @hookspec(warn_on_impl=DeprecatedWarning("permllm_old goes in 0.3: use permllm_warning"))
        def permllm_old(self) -> None: ...

    class Plugin:
        @permllm.hookimpl
        def permllm_old(self) -> str:
            return "still called"

    registry = Registry()
    registry.manager.add_hookspecs(Specifications)
    info = registry.add(Plugin(), "mine", distribution="my-package", version="1.2")
    assert (info.status, info.error) == ("loaded", None)
    assert info.deprecations == ("permllm_old goes in 0.3: use permllm_warning",)
    assert registry.warnings == [
        "the plugin 'mine' (my-package 1.2) uses what is deprecated: "
        "permllm_old goes in 0.3: use permllm_warning"
    ]
    assert registry.manager.hook.permllm_old() == ["still called"]


@pytest.mark.parametrize(
    ("returned", "message"),
    [(None, "None, not a list of classes"), (3, "3, not a list of classes")],
)
def test_hooks_that_return_no_list(returned: Any, message: str) -> None:
    plugin = SimpleNamespace(permllm_metrics=permllm.hookimpl(lambda: returned))
    registry = Registry()
    info = registry.add(plugin, "mine")
    assert registry.warnings
    assert f"its hook permllm_metrics gave {message}" in str(info.error)


@pytest.mark.parametrize("error", [ImportError("no such wheel"), SystemExit(3), KeyError("x")])
def test_hooks_that_raise(error: BaseException) -> None:
    def broken() -> Any:
        raise error

    registry = Registry()
    registry.add(SimpleNamespace(permllm_metrics=permllm.hookimpl(broken)), "bad", version="9")
    registry.add(metrics_plugin(Power), "good")
    assert registry.component("metric", "power") is Power
    assert (
        f"'bad' (bad 9) is broken: its hook permllm_metrics failed: {error!r:.8}"
        in (registry.warnings[0])
    )


def test_the_same_object_twice_is_broken_not_a_crash() -> None:
    plugin = metrics_plugin(Power)
    registry = Registry()
    registry.add(plugin, "one")
    again = registry.add(plugin, "two")
    assert again.status == "broken"
    assert registry.component("metric", "power") is Power


def test_built_ins_come_through_entry_points_and_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry.load()
    own = [info for info in registry.plugins if info.distribution == "permllm"]
    assert {"permllm.metrics", "permllm.pruners"} <= {info.name for info in own}
    assert registry.entry("metric", "wanda").plugin.name == "permllm.metrics"
    assert [info.error for info in own if info.error] == []

    monkeypatch.setenv("PERMLLM_DISABLE_PLUGINS", "permllm.pruners, permllm.datasets")
    registry = Registry.load(disabled=["permllm.metrics"])
    off = {info.name for info in registry.plugins if info.status == "disabled"}
    assert off == {"permllm.metrics", "permllm.pruners", "permllm.datasets"}
    with pytest.raises(UserError, match=r"unknown metric 'wanda'[\s\S]*switched off: permllm\."):
        registry.component("metric", "wanda")


def test_loading_plugins_does_not_import_torch() -> None:
    code = (
        "import sys; from permllm.registry import Registry; Registry.load();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_switched_off_is_read_from_the_environment_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PERMLLM_DISABLE_PLUGINS", " My_Package,, other ")
    assert switched_off(["Mine", "other"]) == ["mine", "my-package", "other"]


def test_permllms_own_plugins_come_first() -> None:
    owners = [point.dist.name == "permllm" for point in plugin_entry_points() if point.dist]
    assert owners == sorted(owners, reverse=True)
    assert owners[0]
