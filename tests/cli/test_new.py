"""``permllm new``: the file that it writes is read, states the model, and is never written over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


def test_the_file_states_the_model_and_is_fine(permllm, project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "model", tmp_path / "my model")
    done = permllm("new", "my model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head, *steps = done.stdout.splitlines()
    assert head == "wrote my model.yaml"
    assert steps[0] == "next:"
    assert [step.split("permllm ")[1] for step in steps[1:]] == [
        "check 'my model.yaml'",
        "run 'my model.yaml'",
    ]
    text = (tmp_path / "my model.yaml").read_text()
    assert "#   2 decoder layers, 32 channels, 0.0 million parameters, float32\n" in text
    assert "# As it stands, it takes about " in text
    assert 'path: "my model"' in text
    # Sequences are no longer than the model's positions.
    assert "length: 128" in text
    checked = permllm("check", "my model.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


def test_its_export_opens_as_any_checkpoint(permllm, project: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep/own.yaml"
    assert permllm("new", project / "model", "--out", file).returncode == 0
    quick = ["--set", "evaluate=[]", "--set", "track={}", "--set", "layers.permutation.passes=1"]
    done = permllm("run", file, *quick, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/runs/lcp/exports/permuted/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model", "--out", "tiny.yaml"], "'tiny.yaml' is there already"),
        (["model", "--out", "nowhere/x.yaml"], "there is no folder 'nowhere'"),
        (["modle"], "there is no folder and no file 'modle'"),
        (["saved/runs/cp/exports/permuted"], "is pruned already"),
    ],
)
@pytest.mark.usefixtures("exports")
def test_refused(permllm, project: Path, words: list, says: str) -> None:
    before = (project / "tiny.yaml").read_text()
    done = permllm("new", *words, cwd=project)
    assert done.returncode == 2
    assert says in done.stderr
    assert "hint: " in done.stderr
    assert (project / "tiny.yaml").read_text() == before
