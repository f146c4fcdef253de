"""The list of plugins: complete, kept while nothing changes, and never out of date."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from permllm.cli import catalogue
from permllm.cli.catalogue import installed

Package = Callable[..., Distribution]

POWER = '''\
import attrs
import permllm
from permllm.components import Metric, option


@permllm.hookimpl
def permllm_metrics():
    @attrs.frozen
    class Power(Metric):
        """The weight to a power."""

        name = "power"
        presets = {"cube": {"exponent": 3}}
        exponent: float = option(2.0, help="the power", minimum=0)
        old: int = option(1, help="no more", deprecated="use exponent")

        def scores(self, weight, statistics):
            return weight

    return [Power]
'''


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache folder of the test's own, and packages that can be found."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for module in ("permllm_power", "something_else"):
        sys.modules.pop(module, None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever plugins are asked for what they have."""
    times: list[int] = []
    ask = catalogue.catalogue
    monkeypatch.setattr(catalogue, "catalogue", lambda registry: times.append(1) or ask(registry))
    return times


def power() -> dict[str, object]:
    (found,) = (plugin for plugin in installed().plugins if plugin["name"] == "power")
    return found


def test_what_a_plugin_adds_with_options_and_presets(package: Package) -> None:
    package("permllm-power", POWER)
    assert power() == {
        "name": "power",
        "version": "1.5",
        "distribution": "permllm-power",
        "components": [
            {
                "kind": "metric",
                "name": "power",
                "reference": "power",
                "summary": "The weight to a power.",
                "description": "The weight to a power.",
                "options": [
                    {
                        "name": "exponent",
                        "type": "a number",
                        "required": False,
                        "default": 2.0,
                        "range": "at least 0",
                        "help": "the power",
                        "deprecated": None,
                    },
                    {
                        "name": "old",
                        "type": "a whole number",
                        "required": False,
                        "default": 1,
                        "range": "",
                        "help": "no more",
                        "deprecated": "use exponent",
                    },
                ],
                "presets": {"cube": {"exponent": 3}},
            }
        ],
        "status": "loaded",
        "error": None,
        "deprecations": [],
    }


def test_it_is_kept_until_something_changes(
    package: Package, asked: list[int], tmp_path: Path
) -> None:
    package("permllm-power", POWER)
    first = installed()
    assert installed() == first
    assert len(asked) == 1
    module = tmp_path / "permllm_power.py"
    os.utime(module, ns=(1, 1))
    assert installed() == first
    assert len(asked) == 2
    installed(["power"])
    assert len(asked) == 3
    package("something-else")
    assert len(installed().plugins) == len(first.plugins) + 1
    assert len(asked) == 4


def test_one_with_a_broken_plugin_is_not_kept(
    package: Package, asked: list[int], tmp_path: Path
) -> None:
    package("permllm-power", "import a_wheel_of_nobody\n")
    assert power()["status"] == "broken"
    assert power()["status"] == "broken"
    assert len(asked) == 2
    assert any("'power' (permllm-power 1.5) is broken" in text for text in installed().warnings)


def test_an_incompatible_plugin_is_told_what_to_install_and_is_not_imported(
    package: Package,
) -> None:
    package("permllm-power", "raise SystemExit('imported')\n", requires=["permllm>=7"])
    assert (power()["status"], power()["components"]) == ("incompatible", [])
    assert "it needs permllm>=7, and this is permllm 0." in str(power()["error"])
    assert "pip install 'permllm>=7'" in str(power()["error"])


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"state": 1}', "null"])
def test_a_damaged_file_is_written_anew(asked: list[int], tmp_path: Path, damage: str) -> None:
    first = installed()
    (file,) = (tmp_path / "cache" / "permllm").iterdir()
    whole = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(damage, encoding="utf-8")
    assert installed() == first
    assert len(asked) == 2
    assert json.loads(file.read_text(encoding="utf-8")) == whole


def test_without_a_place_to_keep_it(asked: list[int], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder", encoding="utf-8")
    assert installed() == installed()
    assert len(asked) == 2
