"""``permllm plugins new``: what it writes is right at once, and what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import permllm
from permllm.components import KINDS
from permllm.errors import UserError
from permllm.pipeline.reading import read_text
from permllm.plugins.scaffold import (
    MAX_NAME,
    TEMPLATES,
    NewPlugin,
    named,
    rendered,
    version_range,
    write_package,
)
from permllm.registry import Registry

TAKEN = [("metric", "wanda", "permllm 0.1.0"), ("dataset", "python-docs", "permllm 0.1.0")]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A package of each kind."""
    folder = tmp_path_factory.mktemp("packages")
    return [write_package(named(f"new-{kind}", kind, TAKEN), folder) for kind in KINDS]


def python(*words: str, path: list[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    below = os.pathsep.join([*map(str, path), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {"PYTHONPATH": below, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=cwd)


def test_the_tests_of_every_kind_pass(packages: list[Path]) -> None:
    tests = [str(package / "tests") for package in packages]
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib"]
    options += ["-c", os.devnull, f"--rootdir={packages[0].parent}"]
    done = python("pytest", *options, *tests, path=packages, cwd=packages[0].parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_they_are_clean_by_their_own_rules(packages: list[Path], command: list[str]) -> None:
    done = python("ruff", *command, "--no-cache", ".", path=[], cwd=packages[0].parent)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_names_of_any_length_stay_clean(command: list[str], tmp_path: Path) -> None:
    for kind in KINDS:
        for name in ("a", "n" * MAX_NAME, "-".join(["long"] * (MAX_NAME // 5))):
            write_package(named(name, kind, TAKEN), tmp_path / kind)
    done = python("ruff", *command, "--no-cache", ".", path=[], cwd=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_shows_a_pipeline_that_uses_it(
    kind: str, packages: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (package,) = (path for path in packages if path.name == f"permllm-new-{kind}")
    monkeypatch.syspath_prepend(package)
    spec = spec_from_file_location("announces", package / f"permllm_new_{kind}" / "plugin.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    registry = Registry.load()
    registry.add(module, f"new-{kind}")
    assert registry.warnings == []
    (block,) = re.findall(r"```yaml\n(.*?)```", (package / "README.md").read_text(), re.DOTALL)
    assert f"new-{kind}" in block
    read_text(block, "README.md", tmp_path, registry)


def test_the_metadata_name_plugin_and_range(packages: list[Path]) -> None:
    for package in packages:
        kind = package.name.removeprefix("permllm-new-")
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        assert project["name"] == package.name
        module = package.name.replace("-", "_")
        assert project["entry-points"] == {"permllm": {f"new-{kind}": f"{module}.plugin"}}
        assert project["dependencies"][0] == f"permllm[prune]{version_range(permllm.__version__)}"
        assert (package / module / "py.typed").exists()
        assert "${{ matrix.python }}" in (package / ".github/workflows/test.yml").read_text()


@pytest.mark.parametrize(
    ("version", "inside", "outside"),
    [
        ("0.1.0", ["0.1.0", "0.1.9"], ["0.0.9", "0.2.0", "1.0"]),
        ("0.9.3", ["0.9.0", "0.9.99"], ["0.10.0"]),
        ("1.4.2", ["1.4.0", "1.9"], ["1.3.9", "2.0"]),
        ("2.0.0.dev3", ["2.0.0", "2.7"], ["3.0"]),
    ],
)
def test_version_range(version: str, inside: list[str], outside: list[str]) -> None:
    specifier = SpecifierSet(version_range(version))
    assert all(other in specifier for other in inside)
    assert not any(other in specifier for other in outside)


@pytest.mark.parametrize(
    ("name", "kind", "cls"),
    [
        ("power", "metric", "PowerMetric"),
        ("permllm-Top_5.acc", "evaluator", "Top5AccEvaluator"),
        ("geo-metric", "metric", "GeoMetric"),
        ("none", "permutation", "NoneLearner"),
        ("permutation-learner", "permutation", "PermutationLearnerLearner"),
        ("class", "pruner", "ClassPruner"),
    ],
)
def test_names_of_classes(name: str, kind: str, cls: str) -> None:
    plugin = named(name, kind, TAKEN)
    assert plugin.cls == cls
    assert plugin.distribution.startswith("permllm-")
    for path, text in rendered(plugin).items():
        if path.endswith(".py"):
            compile(text, path, "exec")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is no name for a plugin"),
        ("my plugin", "is no name for a plugin"),
        ("../up", "is no name for a plugin"),
        ("-x", "is no name for a plugin"),
        ("x-", "is no name for a plugin"),
        ("größe", "is no name for a plugin"),
        ("permllm-3d", "is no name for a plugin"),
        ("x" * (MAX_NAME + 1), "is no name for a plugin"),
        ("metric", "says nothing about a metric"),
        ("permllm", "says nothing about a metric"),
        ("Wanda", "there is a metric 'wanda' already, in permllm 0.1.0"),
        ("python_docs", "there is a dataset 'python-docs' already"),
    ],
)
def test_names_that_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        named(name, "metric", TAKEN)


def test_what_is_installed_is_not_shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "permllm_power-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: permllm-power\nVersion: 1.5\n")
    (tmp_path / "permllm_other.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="package 'permllm-power' is installed already"):
        named("power", "metric", TAKEN)
    with pytest.raises(UserError, match="or a module 'permllm_other', which this would hide"):
        named("other", "metric", TAKEN)


def test_nothing_is_overwritten_and_nothing_half_written_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = NewPlugin("power", "metric")
    (tmp_path / "permllm-power").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_package(plugin, tmp_path)
    assert list((tmp_path / "permllm-power").iterdir()) == []

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_package(plugin, tmp_path / "file")

    write = Path.write_text

    def full_disk(self: Path, *arguments: object, **options: object) -> int:
        if self.name == "plugin.py":
            raise OSError(28, "No space left on device")
        return write(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(UserError, match="No space left"):
        write_package(plugin, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_there_is_an_example_for_every_kind() -> None:
    assert {folder.name for folder in TEMPLATES.iterdir()} == {"common", *KINDS}
