"""What is said of plugins that do not work, of clashes, and of errors in their code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path

import attrs
import pytest

from permllm.components import Metric
from permllm.given import Giver
from permllm.plugins.diagnosis import ambiguous, blamed, blames_a_file, plugin_warnings, unknown
from permllm.plugins.info import Entry, PluginInfo
from permllm.plugins.single_file import load_file


@attrs.frozen
class Power(Metric):
    """The weight to a power."""

    name = "power"


OWN = PluginInfo("permllm.metrics", "permllm", "0.1.0")
ONE = PluginInfo("one", "permllm-one", "1.2")
TWO = PluginInfo("two", "other-two", "3")
BROKEN = PluginInfo("bad", "permllm-bad", "2", "broken", "it has no hooks")
OFF = PluginInfo("off", "permllm-off", "1", "disabled")


def entries(*plugins: PluginInfo) -> list[Entry]:
    return [Entry("metric", Power, plugin) for plugin in plugins]


def test_warnings_are_of_what_cannot_be_used_and_of_what_will_go() -> None:
    aged = PluginInfo("aged", "permllm-aged", "1", deprecations=("permllm_old goes",))
    assert list(plugin_warnings([aged, OFF, BROKEN], entries(aged))) == [
        "the plugin 'bad' (permllm-bad 2) is broken: it has no hooks",
        "the plugin 'aged' (permllm-aged 1) uses what is deprecated: permllm_old goes",
    ]


def test_a_clash_is_with_permllm_or_with_each_other() -> None:
    (among_plugins,) = plugin_warnings([ONE, TWO], entries(ONE, TWO))
    assert among_plugins.startswith("permllm-one 1.2 and other-two 3 both have the metric 'power'")
    (with_own,) = plugin_warnings([OWN, ONE, TWO], entries(OWN, ONE, TWO))
    assert with_own == (
        "the metric 'power' is permllm's own, although permllm-one 1.2 and other-two 3 has one, "
        "too; name that as 'permllm-one:power' and 'other-two:power'"
    )
    error = ambiguous("metric", "power", entries(ONE, TWO))
    assert error.hint == "say which one: permllm-one:power or other-two:power"


def test_an_unknown_component_may_be_where_nobody_looked() -> None:
    hint = str(unknown("metric", "powr", ["power"], [ONE, BROKEN, OFF]).hint)
    assert hint == (
        "did you mean 'power'? known: power; plugins that cannot be used: permllm-bad 2 "
        "(it has no hooks); plugins that are switched off: off"
    )
    assert unknown("metric", "absent:power", [], [ONE]).hint == (
        "no package 'absent' with a plugin is installed: pip install absent"
    )
    assert unknown("metric", "one:powr", ["power"], [ONE]).hint == (
        "did you mean 'power'? known: power"
    )


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(ZeroDivisionError) as caught:
        call()
    return caught.value


def test_an_error_comes_from_the_plugin_that_it_went_through_last(
    package: Callable[..., Distribution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package("permllm-blamed", "def call(inner):\n    return inner()\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "file.py").write_text("def call():\n    return 1 / 0\n", encoding="utf-8")
    module, _ = load_file(tmp_path / "file.py")
    import permllm_blamed

    assert blamed(raised(lambda: permllm_blamed.call(lambda: 1 / 0))) == (
        "permllm-blamed 1.5",
        None,
    )
    through_both = raised(lambda: permllm_blamed.call(module.call))
    assert blamed(through_both) == (str(tmp_path / "file.py"), None)
    assert blamed(raised(lambda: 1 / 0)) is None
    sys.modules.pop("permllm_blamed")


def test_a_wrong_value_comes_from_the_plugin_that_gave_it(
    package: Callable[..., Distribution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "class Own:\n    name = 'own'\n"
    package("permllm-blamed", own)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "file.py").write_text(own, encoding="utf-8")
    module, _ = load_file(tmp_path / "file.py")
    import permllm_blamed

    of_file = Giver("metric", module.Own()).wrong("gave nothing")
    assert blamed(of_file) == (str(tmp_path / "file.py"), None)
    assert blames_a_file(of_file)
    of_package = Giver("metric", permllm_blamed.Own()).wrong("gave nothing")
    assert blamed(of_package) == ("permllm-blamed 1.5", None)
    assert not blames_a_file(of_package)
    sys.modules.pop("permllm_blamed")
