"""What is no plugin and no component is refused, and the message says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import attrs
import pytest

import permllm
from permllm.components import Metric, option
from permllm.core.durations import Duration
from permllm.core.patterns import Pattern
from permllm.registry import PluginInfo, Registry


@attrs.frozen
class Power(Metric):
    """The weight to a power."""

    name = "power"
    exponent: float = option(2.0, help="the power", minimum=0)

    def scores(self, weight: Any, statistics: Any) -> Any:
        return weight


@attrs.frozen
class Looking(Metric):
    """Scores of a whole window, and none of a weight alone."""

    name = "looking"

    def window_scores(self, window: Any, linears: Any) -> Any:
        return {}


def test_a_metric_may_look_at_windows_alone() -> None:
    assert with_metrics(Looking)[0].component("metric", "looking") is Looking


def with_option(hint: Any, default: Any) -> Any:
    class Made(Power):
        """Made."""

        it: Any = option(default, help="an option")

    Made.__annotations__["it"] = hint
    return attrs.frozen(Made)


@pytest.mark.parametrize(
    ("hint", "default"),
    [
        (Path, "x"),
        (Pattern, "2:4"),
        (Duration, "5m"),
        (tuple[int, ...], ("1",)),
        (tuple[int, ...], 1),
        (dict[str, int], {"a": "1"}),
        (Metric, None),
        (int | None, "3"),
        (Literal["a", "b"], "c"),
        (tuple[Path, ...], ("x",)),
    ],
)
def test_a_default_is_of_its_options_type(hint: Any, default: Any) -> None:
    (warning,) = with_metrics(with_option(hint, default))[0].warnings
    assert f"has the option 'it' with the default {default!r}, which is no " in warning


@pytest.mark.parametrize(
    ("hint", "default"),
    [
        (Path, Path("x")),
        (float, 3),
        (int | None, None),
        (tuple[int, ...], [1, 2]),
        (dict[str, Path], {"a": Path("x")}),
        (Metric, Power()),
        (Metric | None, None),
        (Literal["a", "b"], "b"),
        (Any, object()),
    ],
)
def test_defaults_of_the_right_type_pass(hint: Any, default: Any) -> None:
    assert with_metrics(with_option(hint, default))[0].warnings == []


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


def component_by_name() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "bad"
        inner: Metric = option("wanda", help="another metric")

    return Bad


def component_by_class() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "bad"
        inner: Metric | None = option(Power, help="another metric")

    return Bad


def components_by_name() -> Any:
    @attrs.frozen
    class Bad(Power):
        """Bad."""

        name = "bad"
        inner: tuple[Metric, ...] = option(("wanda",), help="other metrics")

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
    (component_by_name, "option 'inner' with a default that is no metric but the text 'wanda'; gi"),
    (component_by_name, "option(factory=MyMetric, help=…)"),
    (component_by_class, "option 'inner' with a default that is no metric but <class"),
    (components_by_name, "option 'inner' with a default that is no metric but"),
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


def test_a_plugin_without_hooks_is_broken() -> None:
    registry = Registry()
    info = registry.add(SimpleNamespace(permllm_datasets=lambda: []), "mine")
    assert info.error == "it has no hooks; mark its permllm_datasets() with @permllm.hookimpl"


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
