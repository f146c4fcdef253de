"""``permllm show``, ``plugins`` and ``schema``: what there is and what it means."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from permllm.pipeline.reading import read_pipeline, read_text, resolved
from permllm.registry import Registry


def test_show_is_a_pipeline_file_itself(permllm, project: Path) -> None:
    done = permllm("show", "tiny.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    registry = Registry.load()
    again = read_text(done.stdout, "tiny.yaml", project, registry)
    assert resolved(again) == resolved(read_pipeline(project / "tiny.yaml", registry))


def test_show_names_runs_and_origins(permllm, project: Path) -> None:
    said = permllm("show", "tiny.yaml", cwd=project).stdout
    assert "# runs: dense and 3 pruned\n#   none\n#   cp\n#   lcp\n" in said
    assert "#   metric wanda: from permllm 0.1.0 (permllm.metrics)\n" in said
    assert "#   permutation cp: from permllm" in said
    assert "#   dataset text: from permllm" in said


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


def test_schema_takes_the_pipelines_of_the_repository(permllm) -> None:
    from ruamel.yaml import YAML

    done = permllm("schema")
    assert done.returncode == 0
    validator = jsonschema.Draft202012Validator(json.loads(done.stdout))
    files = sorted((Path(__file__).parents[2] / "pipelines").rglob("*.yaml"))
    assert files
    for file in files:
        validator.validate(YAML(typ="safe").load(file))
    assert not validator.is_valid({"model": {"source": "gguf", "path": "x"}, "patern": "2:4"})
