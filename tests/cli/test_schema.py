"""``permllm schema``: what editors are told of pipeline files."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema


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
