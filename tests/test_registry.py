"""The registry: what it accepts, what it refuses, and that nobody's plugin crashes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

import permllm
from permllm.components import Metric, option
from permllm.errors import DeprecatedWarning, UserError
from permllm.hookspecs import hookspec
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


def not_frozen() -> Any:
    @attrs.define
    class Bad(Metric):
        """Bad."""

        name = "bad"

    return Bad


def not_attrs() -> Any:
    class Bad(Power):
        """Bad."""

    return Bad


def nameless() -> Any:
    @attrs.frozen
    class Bad(Metric):
        """Bad."""

        def scores(self, weight: Any, statistics: Any) -> Any:
            return weight

    return Bad


def name_with_colon() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "a:b"

    return Bad


def undocumented() -> Any:
    @attrs.frozen
    class Bad(Power):
        name = "bad"

    return Bad


def without_method() -> Any:
    @attrs.frozen
    class Bad(Metric):
        """Bad."""

        name = "bad"

    return Bad


def too_few_arguments() -> Any:
    @attrs.frozen
    class Bad(Metric):
        """Bad."""

        name = "bad"

        def scores(self, weight: Any) -> Any:
            return weight

    return Bad


def too_many_arguments() -> Any:
    @attrs.frozen
    class Bad(Metric):
        """Bad."""

        name = "bad"

        def scores(self, weight: Any, statistics: Any, more: int) -> Any:
            return weight

    return Bad


def takes_name() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "bad"
        preset: str = option("a", help="taken")

    return Bad


def unspellable_option() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "bad"
        numbers: complex = option(1j, help="no YAML")

    return Bad


def unknown_type() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "bad"
        numbers: Nowhere = option(1, help="no such type")  # type: ignore[name-defined] # noqa: F821

    return Bad


def bad_preset() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "bad"
        presets = {"a": {"exponnt": 1}}

    return Bad


def bad_needs() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "bad"
        needs = ("square_sum",)

    return Bad


def bad_default() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "bad"
        share: float = option(2.0, help="share", maximum=1)

    return Bad


def default_of_another_type() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "bad"
        rounds: int = option("3", help="rounds")

    return Bad


@attrs.frozen
class Part:
    """Options that stand below one key."""

    number: complex = 1j


def unspellable_part() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "bad"
        part: Part = option(factory=Part, help="more options")

    return Bad


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: 3, "3 is no class"),
    (lambda: int, "builtins.int does not inherit from permllm.components.Metric"),
    (not_frozen, "is not a frozen attrs class; put @attrs.frozen before it"),
    (not_attrs, "is not a frozen attrs class"),
    (nameless, "needs a class variable 'name'"),
    (name_with_colon, "needs a class variable 'name'"),
    (undocumented, "needs a docstring"),
    (without_method, "lacks the method scores(self, weight, statistics)"),
    (too_few_arguments, "has scores(self, weight) where scores(self, weight, statistics) is exp"),
    (too_many_arguments, "has scores(self, weight, statistics, more) where scores(self, weight, s"),
    (takes_name, "has an option 'preset', a name that pipeline files need"),
    (unspellable_option, "option 'numbers' has the type <class 'complex'>"),
    (unspellable_option, "which no file can spell; these can be: int, float, bool, str, Path"),
    (unspellable_part, "option 'number' has the type <class 'complex'>"),
    (bad_default, "option 'share' with a default that no file could give: it must be at most 1,"),
    (default_of_another_type, "'rounds' with a default that no file could give: expected a whole"),
    (unknown_type, "the type of option 'numbers' cannot be found: name 'Nowhere'"),
    (bad_preset, "has a preset 'a' with an unknown option 'exponnt'; did you mean 'exponent'?"),
    (bad_needs, "needs 'needs' to be a tuple of statistics"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_is_no_component_is_refused_and_the_rest_stays(
    make: Callable[[], Any], message: str
) -> None:
    registry, info = with_metrics(make(), Power)
    assert registry.component("metric", "power") is Power
    assert info.status == "broken"
    (warning,) = registry.warnings
    assert "the plugin 'mine' (my-package 1.2) is broken: metric: " in warning
    assert message in warning


def test_a_missing_component_tells_of_broken_plugins() -> None:
    registry, _ = with_metrics(without_method())
    with pytest.raises(UserError, match=r"unknown metric 'bad'[\s\S]*used: my-package 1.2 "):
        registry.component("metric", "bad")


def test_two_components_of_one_plugin_with_one_name() -> None:
    registry, _ = with_metrics(Power, Power)
    assert "it has two metrics called 'power'" in registry.warnings[0]


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


def test_a_plugin_without_hooks_is_broken() -> None:
    registry = Registry()
    info = registry.add(SimpleNamespace(permllm_datasets=lambda: []), "mine")
    assert info.error == "it has no hooks; mark its permllm_datasets() with @permllm.hookimpl"


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


def test_hooks_that_do_not_exist_or_want_other_arguments() -> None:
    class Misspelt:
        @permllm.hookimpl
        def permllm_metric(self) -> list[type]:
            return []

    class Wrong:
        @permllm.hookimpl
        def permllm_run_started(self, runner: Any) -> None:
            return None

    registry = Registry()
    misspelt = registry.add(Misspelt(), "misspelt")
    wrong = registry.add(Wrong(), "wrong")
    assert misspelt.error == "there is no hook 'permllm_metric'; did you mean 'permllm_metrics'?"
    assert wrong.status == "broken"
    assert "runner" in str(wrong.error)
    assert registry.manager.get_plugins() == set()


@pytest.mark.parametrize(
    ("returned", "message"),
    [(None, "'NoneType' object is not iterable"), (3, "'int' object is not iterable")],
)
def test_hooks_that_return_no_list(returned: Any, message: str) -> None:
    plugin = SimpleNamespace(permllm_metrics=permllm.hookimpl(lambda: returned))
    registry = Registry()
    info = registry.add(plugin, "mine")
    assert registry.warnings
    assert f"its hook permllm_metrics failed: TypeError: {message}" in str(info.error)


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


def test_each_registry_stands_alone() -> None:
    first, second = Registry.load(), Registry.load()
    first.add(metrics_plugin(Power), "mine")
    assert "power" in first.components("metric")
    assert "power" not in second.components("metric")


def test_loading_plugins_does_not_import_torch() -> None:
    code = (
        "import sys; from permllm.registry import Registry; Registry.load();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
