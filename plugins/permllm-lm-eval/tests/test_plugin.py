"""The package as permllm's users meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from permllm_lm_eval.evaluator import LmEval

import permllm
from permllm.testing.models import save_tiny

HEAVY = ("lm_eval", "torch", "datasets", "evaluate", "yaml")


def imported(*words: str) -> set[str]:
    """The packages that a call of ``permllm`` imports."""
    command = [sys.executable, "-X", "importtime", "-m", "permllm", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    return {name.partition(".")[0] for name in names}


def test_help_and_listing_do_not_import_the_harness() -> None:
    assert not imported("--help") & set(HEAVY)
    listing = imported("plugins", "info", LmEval.name)
    assert "permllm_lm_eval" in listing
    assert not listing & {"lm_eval", "evaluate"}


PIPELINE = """\
permllm: 1
name: tiny
model: {source: directory, path: model}
calibration: {dataset: {name: text, path: text.txt}, sequences: 2, length: 16, held_out: 1}
pattern: "2:4"
matrix:
  layers.permutation: [none]
evaluate:
  - {name: lm-eval, tasks: [quiz], task_folders: [tasks], limit: 5}
  - {name: lm-eval, tasks: [quiz], task_folders: [tasks], limit: 5, few_shot: 1, metrics: [acc]}
track: {}
"""


@pytest.fixture
def project(tmp_path: Path, quiz: Path) -> Path:
    save_tiny("llama", tmp_path / "model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 20)
    (tmp_path / "tiny.yaml").write_text(PIPELINE)
    return tmp_path


def test_in_a_pipeline(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = permllm.run(project / "tiny.yaml", out=project / "out")
    labels = [run.label for run in results.runs]
    assert labels[0] == "dense"
    assert len(labels) == 2
    for run in results.runs:
        assert 0 <= run.figures["lm-eval/quiz/acc_norm"] <= 1
        assert run.figures["lm-eval/quiz/1-shot/acc/stderr"] >= 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "loglikelihood" not in err


def called(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What ``permllm`` says when a user calls it."""
    command = [sys.executable, "-m", "permllm", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_on_the_command_line(project: Path) -> None:
    spec = "{name: lm-eval, tasks: [quiz], task_folders: [tasks], limit: 5, metrics: [acc]}"
    done = called("eval", "model", "--evaluate", spec, "--json", folder=project)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert list(figures) == ["lm-eval/quiz/acc", "lm-eval/quiz/acc/stderr"]
    assert done.stderr == "loading model\n"


def test_mistakes_are_said_before_the_model_is_loaded(project: Path) -> None:
    spec = "{name: lm-eval, tasks: [quizz], task_folders: [tasks]}"
    done = called("eval", "model", "--evaluate", spec, folder=project)
    assert done.returncode == 2
    mistake = "error: lm-eval knows no task 'quizz'\n  hint: did you mean 'quiz'?"
    assert done.stderr.startswith(mistake)
