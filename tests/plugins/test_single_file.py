"""Plugins of one file: found, run once, recorded, and every mistake at its place."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

from permllm.errors import UserError
from permllm.pipeline.reading import dump_yaml, read_mapping, read_pipeline, read_text, resolved
from permllm.registry import Registry

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

PIPELINE = """\
model: {source: directory, path: m}
pattern: "2:4"
plugins: [./metric.py]
layers: {metric: {name: power, exponent: 3}}
track: {}
"""


@pytest.fixture
def registry() -> Registry:
    return Registry.load()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metric.py").write_text(POWER, encoding="utf-8")
    (tmp_path / "pipeline.yaml").write_text(PIPELINE, encoding="utf-8")
    return tmp_path


def test_its_components_are_found_and_it_is_known_by_its_digest(
    folder: Path, registry: Registry
) -> None:
    pipeline = read_pipeline(folder / "pipeline.yaml", registry)
    file = folder / "metric.py"
    assert pipeline.plugins == (file,)
    assert (pipeline.layers.metric.name, pipeline.layers.metric.exponent) == ("power", 3.0)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert registry.digests(pipeline.plugins) == {str(file): digest}
    info = registry.plugin_of(type(pipeline.layers.metric))
    assert info is not None
    assert (info.name, info.file, str(info)) == ("metric", file, str(file))
    assert registry.component("metric", "metric:power") is type(pipeline.layers.metric)
    assert sorted(path.name for path in folder.iterdir()) == ["metric.py", "pipeline.yaml"]


def test_only_a_file_that_says_so_gets_it(folder: Path, registry: Registry) -> None:
    text = PIPELINE.replace("plugins: [./metric.py]\n", "")
    with pytest.raises(UserError, match="unknown metric 'power'"):
        read_text(text, "pipeline.yaml", folder, registry)


def test_it_runs_once_and_registries_share_its_classes(folder: Path) -> None:
    with (folder / "metric.py").open("a", encoding="utf-8") as file:
        file.write("\nimport sys\nsys.ran = [*getattr(sys, 'ran', []), __file__]\n")
    one, other = Registry.load(), Registry.load()
    pipelines = [read_pipeline(folder / "pipeline.yaml", each) for each in (one, one, other)]
    assert vars(sys).pop("ran") == [str(folder / "metric.py")]
    assert pipelines[0] == pipelines[1] == pipelines[2]
    assert [info.name for info in one.plugins].count("metric") == 1


def test_the_resolved_pipeline_reads_back_from_elsewhere(
    folder: Path, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pipeline = read_pipeline(folder / "pipeline.yaml", registry)
    text = dump_yaml(resolved(pipeline, registry))
    assert f"- {folder / 'metric.py'}\n" in text
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert read_text(text, "pipeline.yaml", elsewhere, Registry.load()) == pipeline


def test_mappings_and_settings_name_files_too(folder: Path) -> None:
    data = {"model": {"source": "directory", "path": "m"}, "pattern": "2:4", "track": {}}
    layers = {"layers": {"metric": "power"}, "plugins": [folder / "metric.py"]}
    assert read_mapping(data | layers, Registry.load()).layers.metric.name == "power"
    settings = ["plugins=[metric.py]", "layers.metric=power"]
    pipeline = read_mapping(data, Registry.load(), base_dir=folder, settings=settings)
    assert pipeline.plugins == (folder / "metric.py",)


def test_a_matrix_may_use_it_but_not_vary_it(folder: Path, registry: Registry) -> None:
    text = PIPELINE + "matrix: {layers.metric: [wanda, power]}\n"
    pipeline = read_text(text, "p.yaml", folder, registry)
    assert [value["name"] for value in pipeline.matrix["layers.metric"]] == ["wanda", "power"]
    with pytest.raises(UserError, match=r"p\.yaml:6:10: 'plugins' cannot vary"):
        read_text(PIPELINE + "matrix: {plugins: [[], []]}\n", "p.yaml", folder, registry)


def test_it_can_be_switched_off(folder: Path) -> None:
    registry = Registry.load(disabled=["metric"])
    with pytest.raises(UserError, match=r"4:25: unknown metric 'power'[\s\S]*switched off: metric"):
        read_pipeline(folder / "pipeline.yaml", registry)
    assert [i.status for i in registry.plugins if i.file] == ["disabled"]


def test_a_file_that_changed_is_not_taken_for_the_one_that_was_loaded(
    folder: Path, registry: Registry
) -> None:
    read_pipeline(folder / "pipeline.yaml", registry)
    changed = POWER.replace("option(2.0", "option(4.0")
    assert len(changed) == len(POWER)
    (folder / "metric.py").write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=r"3:11: .*metric\.py' changed since"):
        read_pipeline(folder / "pipeline.yaml", registry)
    again = read_text(PIPELINE.replace(", exponent: 3", ""), "p", folder, Registry.load())
    assert again.layers.metric.exponent == 4.0  # type: ignore[attr-defined]


MISTAKES: dict[str, tuple[str, str]] = {
    "syntax": (POWER + "def broken(:\n", "cannot be imported: line 20: SyntaxError: "),
    "name": ("import attrs\n\n\nnothing_there\n", "line 4: NameError: name 'nothing_there'"),
    "deep": ("def f():\n    1 / 0\n\n\nf()\n", "line 2: ZeroDivisionError: division by zero"),
    "import": ("import a_wheel_of_nobody\n", "line 1: ModuleNotFoundError: No module named 'a_wh"),
    "exit": ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
    "no hooks": ("x = 1\n", "it has no hooks; mark its permllm_metrics() with @permllm.hookimpl"),
    "unmarked": (
        POWER.replace("@permllm.hookimpl\n", "").replace("permllm_metrics", "permllm_pruners"),
        "it has no hooks; mark its permllm_pruners() with @permllm.hookimpl",
    ),
    "unknown hook": (
        POWER.replace("permllm_metrics", "permllm_metric"),
        "there is no hook 'permllm_metric'; did you mean 'permllm_metrics'?",
    ),
    "no component": (POWER.replace("@attrs.frozen\n", ""), "metric: Power is not a frozen attrs"),
    "hook that fails": (
        POWER.replace("return [Power]", "return [Powr]"),
        "its hook permllm_metrics failed: NameError: name 'Powr' is not defined",
    ),
    "built-in name": (
        POWER.replace('"power"', '"wanda"'),
        "the metric 'wanda' is built in; give it another name",
    ),
}


@pytest.mark.parametrize(("source", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_the_file_are_told_at_the_place_that_names_it(
    folder: Path, registry: Registry, source: str, message: str
) -> None:
    (folder / "metric.py").write_text(source, encoding="utf-8")
    before = [info.name for info in registry.plugins]
    with pytest.raises(UserError) as caught:
        read_pipeline(folder / "pipeline.yaml", registry)
    error = caught.value
    assert (Path(str(error.file)).name, error.line, error.column) == ("pipeline.yaml", 3, 11)
    assert f"'{folder / 'metric.py'}'" in error.message
    assert message in error.message
    # Nothing of it stays: mended, it loads in the same process.
    assert [info.name for info in registry.plugins] == before
    if "cannot be imported" in error.message:
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        assert str(folder / "metric.py") not in files
    (folder / "metric.py").write_text(POWER + "# mended\n", encoding="utf-8")
    assert read_pipeline(folder / "pipeline.yaml", registry).layers.metric.name == "power"
    assert registry.entry("metric", "wanda").plugin.built_in


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ("[./metrc.py]", r"3:11: there is no file '.*metrc\.py'[\s\S]*did you mean '.*metric\.py'"),
        ("[metric.py, gone.py]", r"3:22: there is no file '.*gone\.py'"),
        ("[.]", r"3:11: '.*' cannot be read"),
        ("metric.py", r"3:10: expected a list of paths.*\n.*write it as \[a, b\]"),
        ("[3]", r"3:11: expected a path"),
        ("", r"4:1: expected a list of paths, not nothing"),
        ('["a\\0b"]', r"3:11: expected a path"),
    ],
)
def test_mistakes_in_the_list(folder: Path, registry: Registry, plugins: str, message: str) -> None:
    text = PIPELINE.replace("[./metric.py]", plugins)
    with pytest.raises(UserError, match=message):
        read_text(text, "p.yaml", folder, registry)


def test_two_files_of_one_name(folder: Path, registry: Registry) -> None:
    for number in (1, 2, 3):
        other = folder / str(number) / "metric.py"
        other.parent.mkdir()
        other.write_text(POWER.replace('"power"', f'"power{number}"'), encoding="utf-8")
    text = PIPELINE.replace("[./metric.py]", "[1/metric.py, 2/metric.py, 3/metric.py, metric.py]")
    pipeline: Any = read_text(text, "p.yaml", folder, registry)
    assert len(pipeline.plugins) == 4
    assert {"power", "power1", "power2", "power3"} <= set(registry.components("metric"))
    assert registry.warnings == []


def test_another_file_than_the_one_that_is_expected_does_not_run(folder: Path) -> None:
    file, ran = folder / "metric.py", folder / "ran"
    file.write_text(f"open({str(ran)!r}, 'w').close()\n{POWER}", encoding="utf-8")
    with pytest.raises(UserError, match=r"the plugin '.*metric\.py' changed since the run began"):
        Registry.load().add_file(file, "0" * 64)
    assert not ran.exists()
    known, digest = Registry.load(), hashlib.sha256(file.read_bytes()).hexdigest()
    known.add_file(file, digest)
    assert ran.exists()
    with pytest.raises(UserError, match="changed since the run began"):
        known.add_file(file, "0" * 64)
