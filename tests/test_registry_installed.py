"""The registry with real packages, built and installed into an environment of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

import permllm
from permllm.plugins.scaffold import NewPlugin, version_range, write_package

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"

[project.entry-points.permllm]
plugin = "{module}"
"""

POWER = '''\
import attrs

import permllm
from permllm.components import Metric, option


@attrs.frozen
class Power(Metric):
    """The weight's absolute value to a power."""

    name = "power"
    exponent: float = option(2.0, help="the power", minimum=0)

    def scores(self, weight, statistics):
        return weight.abs() ** self.exponent


@permllm.hookimpl
def permllm_metrics():
    return [Power]
'''

PROBE = """\
import json, sys
from pathlib import Path
from permllm.errors import UserError
from permllm.pipeline.reading import read_pipeline
from permllm.registry import Registry

registry = Registry.load()
plugins = {
    str(plugin): plugin.status for plugin in registry.plugins if plugin.package != "permllm"
}
path, answers = Path(sys.argv[1]), []
for metric in sys.argv[2:]:
    path.write_text(
        "model: {source: directory, path: m}\\n"
        "pattern: '2:4'\\n"
        f"layers: {{metric: {metric}, permutation: none}}\\n"
        "track: {}\\n"
    )
    answer = {"warnings": registry.warnings, "plugins": plugins}
    try:
        answer["metric"] = repr(read_pipeline(path, registry).layers.metric)
    except UserError as error:
        answer["error"] = str(error)
    answers.append(answer)
print(json.dumps(answers))
"""


class Environment:
    """An empty environment on top of this one, with the packages that a test builds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "env", with_pip=False, symlinks=True)
        bin_folder = "Scripts" if sys.platform == "win32" else "bin"
        self.python = folder / "env" / bin_folder / "python"
        variables = {"base": str(folder / "env"), "platbase": str(folder / "env")}
        own = Path(sysconfig.get_path("purelib", "venv", variables))
        # addsitedir, and not a bare path: an editable permllm has a .pth file of its own.
        below = sysconfig.get_path("purelib")
        (own / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")

    def install(self, name: str, version: str, source: str) -> None:
        """Build a package of one module and install it."""
        module = name.replace("-", "_")
        project = self.folder / name
        project.mkdir()
        (project / "pyproject.toml").write_text(
            PYPROJECT.format(name=name, version=version, module=module)
        )
        (project / f"{module}.py").write_text(source)
        self.install_folder(project)

    def install_folder(self, project: Path) -> None:
        """Build the package in a folder and install it."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        options = ["--no-index", "--no-deps", "--no-build-isolation", str(project)]
        done = subprocess.run([*pip, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``permllm …`` in that environment."""
        command = [str(self.python), "-m", "permllm", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def read(self, *metrics: str) -> list[dict[str, Any]]:
        """What that environment makes of a pipeline with each of these metrics."""
        words = [str(self.python), "-c", PROBE, str(self.folder / "pipeline.yaml"), *metrics]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def test_an_installed_plugin_is_used_by_a_pipeline(environment: Environment) -> None:
    environment.install("permllm-power", "1.5", POWER)
    answer, qualified, unknown = environment.read(
        "{name: power, exponent: 3}", "permllm-power:power", "powr"
    )
    assert answer["metric"] == "Power(exponent=3.0)"
    assert answer["plugins"] == {"permllm-power 1.5": "loaded"}
    assert qualified["metric"] == "Power(exponent=2.0)"
    assert "3:18: unknown metric 'powr'" in unknown["error"]


def test_a_broken_plugin_is_a_warning_until_it_is_needed(environment: Environment) -> None:
    environment.install("permllm-broken", "0.3", "import a_wheel_that_nobody_has\n")
    answer, needed = environment.read("wanda", "power")
    assert answer["plugins"] == {"permllm-broken 0.3": "broken"}
    assert "Wanda" in answer["metric"]
    (warning,) = answer["warnings"]
    assert "permllm-broken 0.3" in warning
    assert "No module named 'a_wheel_that_nobody_has'" in warning
    assert "permllm-broken 0.3" in needed["error"]


def test_two_packages_with_one_name_clash_only_where_it_is_used(environment: Environment) -> None:
    environment.install("permllm-power", "1.5", POWER)
    environment.install("other-power", "2.0", POWER.replace("2.0, help", "7.0, help"))
    answer, used, qualified = environment.read("wanda", "power", "'other-power:power'")
    assert "other-power 2.0 and permllm-power 1.5 both have the metric" in answer["warnings"][0]
    assert answer["plugins"] == {"other-power 2.0": "loaded", "permllm-power 1.5": "loaded"}
    said = "pipeline.yaml:3:18: other-power 2.0 and permllm-power 1.5 both have"
    assert said in used["error"]
    assert qualified["metric"] == "Power(exponent=7.0)"


def test_a_new_plugin_is_built_installed_and_listed(environment: Environment) -> None:
    folder = write_package(NewPlugin("fresh", "metric"), environment.folder)
    environment.install_folder(folder)
    listed = environment.call("plugins", "--json")
    assert listed.returncode == 0, listed.stderr
    plugin = next(p for p in json.loads(listed.stdout) if p["name"] == "fresh")
    assert (plugin["distribution"], plugin["version"]) == ("permllm-fresh", "0.1.0")
    assert (plugin["status"], plugin["error"]) == ("loaded", None)
    (component,) = plugin["components"]
    assert (component["kind"], component["name"]) == ("metric", "fresh")
    assert component["summary"]
    assert [option["name"] for option in component["options"]] == ["exponent"]
    (answer,) = environment.read("{name: fresh, exponent: 3}")
    assert answer["metric"] == "FreshMetric(exponent=3.0)"
    taken = environment.call("plugins", "new", "fresh", "--out", str(environment.folder))
    assert taken.returncode == 2
    assert "there is a metric 'fresh' already, in permllm-fresh 0.1.0" in taken.stderr


def test_a_plugin_for_another_permllm_is_not_loaded(environment: Environment) -> None:
    folder = write_package(NewPlugin("fresh", "metric"), environment.folder)
    pyproject = folder / "pyproject.toml"
    text = pyproject.read_text().replace(version_range(permllm.__version__), ">=7,<8")
    pyproject.write_text(text)
    environment.install_folder(folder)
    answer, needed = environment.read("wanda", "fresh")
    assert answer["plugins"] == {"permllm-fresh 0.1.0": "incompatible"}
    assert "it needs permllm[prune]>=7,<8, and this is permllm" in answer["warnings"][0]
    assert "pip install 'permllm[prune]>=7,<8'" in needed["error"]
