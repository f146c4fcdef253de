"""``permllm plugins``: lists, explanations, new ones; and plugins in other commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest


def test_broken_plugin_is_listed_with_package_and_reason(permllm, plugins: str) -> None:
    done = permllm("plugins", "--json", PYTHONPATH=plugins)
    assert done.returncode == 0
    found = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}
    assert found["broken"]["status"] == "broken"
    assert found["broken"]["distribution"] == "permllm-broken"
    assert "no such luck" in found["broken"]["error"]
    assert found["works"]["components"][0]["name"] == "breaks"


def test_the_table_is_readable_at_80_columns(permllm, plugins: str) -> None:
    done = permllm("plugins", PYTHONPATH=plugins, COLUMNS="80")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    table = [line for line in lines if not line.startswith("warning: ")]
    assert max(map(len, table)) <= 80
    # Names are whole, each with its package below, and reasons stand at the end.
    words = [line.split() for line in table]
    assert any(line[2:] == ["permutation:", "cp,", "greedy,", "lcp,", "none"] for line in words)
    assert words[words.index(["works", "loaded", "metric:", "breaks"]) + 1] == [
        "permllm-works",
        "1.5",
    ]
    assert ["broken", "broken"] in words
    reason = "warning: the plugin 'broken' (permllm-broken 1.5) is broken: it cannot be imported"
    assert lines[-1].startswith(reason)


def test_reasons_are_printed_as_they_are(permllm, tmp_path: Path) -> None:
    announce(tmp_path, "rich", "raise ValueError('[bold]no[/bold]')\n")
    announce(tmp_path, "next", "raise SystemExit('imported')\n", "Requires-Dist: permllm>=7")
    said = permllm("plugins", PYTHONPATH=path_with(tmp_path)).stdout
    assert (
        "'rich' (permllm-rich 1.5) is broken: it cannot be imported: ValueError: [bold]no" in said
    )
    assert "the plugin 'next' (permllm-next 1.5) is incompatible: it needs permllm>=7" in said
    assert "pip install 'permllm>=7'\n" in said
    assert "imported: SystemExit" not in said


def test_info_of_what_a_broken_plugin_was_to_add(permllm, plugins: str) -> None:
    gone = permllm("plugins", "info", "broken", PYTHONPATH=plugins)
    assert gone.returncode == 2
    lost = gone.stderr.partition("; plugins that cannot be used (")[2]
    assert "permllm-broken" in lost
    assert "permllm-works" not in lost


TWO = """\
import attrs
import permllm
from permllm.components import Metric, Pruner, option


@attrs.frozen
class Wanda(Metric):
    '''Another Wanda.'''

    name = "wanda"
    old: int = option(1, help="no more", minimum=1, deprecated="use nothing")

    def scores(self, weight, statistics):
        return weight


@attrs.frozen
class Cp(Pruner):
    '''A pruner with a learner's name.'''

    name = "cp"

    def prune(self, weight, scores, pattern, statistics):
        return weight, scores


@permllm.hookimpl
def permllm_metrics():
    return [Wanda]


@permllm.hookimpl
def permllm_pruners():
    return [Cp]
"""


def announce(folder: Path, name: str, source: str, *metadata: str) -> None:
    """Put a package permllm-NAME with a plugin into a folder."""
    (folder / f"permllm_{name}.py").write_text(source)
    info = folder / f"permllm_{name}-1.5.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: permllm-{name}", "Version: 1.5", *metadata, ""]
    (info / "METADATA").write_text("\n".join(lines))
    (info / "entry_points.txt").write_text(f"[permllm]\n{name} = permllm_{name}\n")


def path_with(folder: Path) -> str:
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A path with a plugin whose components have the names of others."""
    folder = tmp_path_factory.mktemp("two")
    announce(folder, "two", TWO)
    return path_with(folder)


def test_info_explains_all_that_have_the_name(permllm, two: str) -> None:
    said = permllm("plugins", "info", "wanda", PYTHONPATH=two).stdout
    assert "wanda: metric from permllm 0.1.0 (permllm.metrics)\n" in said
    assert "permllm-two:wanda: metric from permllm-two 1.5 (two)\n\nAnother Wanda.\n" in said
    option = "  old: a whole number (default 1; at least 1)\n      no more\n"
    assert f"{option}      deprecated: use nothing\n" in said
    said = permllm("plugins", "info", "cp", PYTHONPATH=two).stdout
    assert "cp: permutation from permllm" in said
    assert "cp: pruner from permllm-two 1.5 (two)" in said


def test_info_of_one_package(permllm, two: str) -> None:
    for name in ("permllm-two:wanda", "permllm:wanda"):
        said = permllm("plugins", "info", name, PYTHONPATH=two).stdout
        assert said.count(": metric from ") == 1
    gone = permllm("plugins", "info", "two:wnada", PYTHONPATH=two)
    assert gone.returncode == 2
    assert "there is no component 'two:wnada'" in gone.stderr
    said = permllm("plugins", "info", "wanda", "--no-plugin", "two", PYTHONPATH=two).stdout
    assert "permllm-two" not in said


def test_a_built_in_name_is_a_warning_and_stays_built_in(permllm, project: Path, two: str) -> None:
    done = permllm("show", "tiny.yaml", cwd=project, PYTHONPATH=two)
    assert done.returncode == 0
    assert "the metric 'wanda' is permllm's own, although permllm-two 1.5 has one" in done.stderr
    assert "#   metric wanda: from permllm 0.1.0 (permllm.metrics)" in done.stdout


def test_options_stand_after_the_command_that_they_are_for(permllm) -> None:
    done = permllm("plugins", "--no-plugin", "x", "info", "lcp")
    assert done.returncode == 2
    assert "options go after the command: python -m permllm plugins info …" in done.stderr


def test_a_component_that_breaks_is_named_with_its_package_and_what_it_lacks(
    permllm, project: Path, tmp_path: Path
) -> None:
    source = TWO.replace("return weight\n", "import absent\n", 1).replace('"wanda"', '"lacking"')
    needs = ("Provides-Extra: fast", "Requires-Dist: absent; extra == 'fast'")
    announce(tmp_path, "lacking", source, *needs)
    words = ["--set", "layers.metric=lacking", "--set", "matrix=null", "--out", tmp_path / "run"]
    done = permllm("run", "tiny.yaml", *words, cwd=project, PYTHONPATH=path_with(tmp_path))
    assert done.returncode == 1
    assert "error: ModuleNotFoundError: No module named 'absent'" in done.stderr
    assert "it comes from the plugin permllm-lacking 1.5\n" in done.stderr
    assert "pip install 'permllm-lacking[fast]'\n" in done.stderr


def test_a_new_plugin(permllm, tmp_path: Path) -> None:
    done = permllm("plugins", "new", "power", "--kind", "pruner", "--out", "here", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wrote here/permllm-power\nnext:\n  cd here/permllm-power\n")
    assert (tmp_path / "here/permllm-power/permllm_power/pruner.py").exists()
    again = permllm("plugins", "new", "power", "--out", "here", cwd=tmp_path)
    assert again.returncode == 2
    assert "error: 'here/permllm-power' exists already" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lcp"], "error: there is a permutation 'lcp' already, in permllm 0.1.0"),
        (["a b"], "error: 'a b' is no name for a plugin"),
        (
            ["x", "--kind", "metrics"],
            "'metrics' is not one of 'metric', 'allocation', 'perm",
        ),
    ],
)
def test_a_new_plugin_that_is_refused(permllm, tmp_path: Path, words: list[str], message) -> None:
    done = permllm("plugins", "new", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


FILE = """\
plugins: [power.py]
model: {source: directory, path: PROJECT/model}
calibration: {dataset: {name: text, path: PROJECT/text.txt}, sequences: 2, length: 16, held_out: 0}
pattern: "2:4"
layers: {metric: power, permutation: none}
track: {}
"""


def test_a_plugin_of_one_file_is_shown_checked_and_recorded(
    permllm, project: Path, tmp_path: Path
) -> None:
    source = TWO.replace('"wanda"', '"power"').replace("return weight", "return weight.abs()")
    (tmp_path / "power.py").write_text(source.replace('"cp"', '"prunes"'))
    (tmp_path / "file.yaml").write_text(FILE.replace("PROJECT", str(project)))
    line = f"plugin {tmp_path / 'power.py'}: metric power; pruner prunes; SHA-256 "
    shown = permllm("show", "file.yaml", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"#   metric power: from {tmp_path / 'power.py'} (power)\n" in shown.stdout
    assert f"\n# {line}" in shown.stdout
    assert f"plugins:\n- {tmp_path / 'power.py'}\n" in shown.stdout
    checked = permllm("check", "file.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert line in checked.stdout
    off = permllm("check", "file.yaml", "--no-plugin", "power", cwd=tmp_path)
    assert off.returncode == 2
    assert "file.yaml:5:18: unknown metric 'power'" in off.stderr


def test_a_deprecated_option_is_one_line_of_warning(permllm, project: Path, tmp_path: Path) -> None:
    (tmp_path / "power.py").write_text(TWO.replace('"wanda"', '"power"'))
    text = FILE.replace("PROJECT", str(project)).replace(
        "metric: power", "metric: {name: power, old: 2}"
    )
    (tmp_path / "file.yaml").write_text(text + "matrix: {seed: [1, 2, 3]}\n")
    done = permllm("show", "file.yaml", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == (
        "warning: file.yaml:5:32: option 'old' of metric 'power' is deprecated: use nothing\n"
    )


def test_plugins_as_json(permllm) -> None:
    done = permllm("plugins", "--json")
    assert done.returncode == 0, done.stderr
    plugins = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}
    metrics = plugins["permllm.metrics"]
    assert (metrics["distribution"], metrics["version"]) == ("permllm", "0.1.0")
    assert (metrics["status"], metrics["error"]) == ("loaded", None)
    ria = next(entry for entry in metrics["components"] if entry["name"] == "ria")
    assert ria["kind"] == "metric"
    assert ria["summary"]
    assert [option["name"] for option in ria["options"]] == ["exponent"]


def test_plugins_as_a_table(permllm) -> None:
    done = permllm("plugins")
    assert done.returncode == 0
    assert "wanda" in done.stdout
    assert "permllm.metrics" in done.stdout


def test_disabled_plugin(permllm) -> None:
    done = permllm("plugins", "--json", "--no-plugin", "permllm.metrics")
    (metrics,) = (p for p in json.loads(done.stdout) if p["name"] == "permllm.metrics")
    assert (metrics["status"], metrics["components"]) == ("disabled", [])


@pytest.mark.parametrize(("name", "option"), [("lcp", "block"), ("wanda", "no options")])
def test_plugin_info(permllm, name: str, option: str) -> None:
    done = permllm("plugins", "info", name)
    assert done.returncode == 0
    assert option in done.stdout


def test_plugin_info_of_a_misspelt_name(permllm) -> None:
    done = permllm("plugins", "info", "wnada")
    assert done.returncode == 2
    assert "did you mean 'wanda'?" in done.stderr
