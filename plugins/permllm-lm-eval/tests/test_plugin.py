"""The package as permllm's users meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import permllm
from permllm.cli.main import main
from permllm.testing.models import save_tiny

HEAVY = ("lm_eval", "torch", "datasets", "evaluate", "yaml")


def test_help_and_listing_do_not_import_the_harness() -> None:
    code = (
        "import sys\n"
        "from permllm.cli.main import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        f"    print([name for name in {HEAVY} if name in sys.modules])\n"
        "from permllm.registry import Registry\n"
        "registry = Registry.load()\n"
        "assert registry.warnings == [] or registry.warnings == ()\n"
        "print(registry.component('evaluator', 'lm-eval').__module__)\n"
        "print('lm_eval' in sys.modules, 'evaluate' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-3:] == ["[]", "permllm_lm_eval.evaluator", "False False"]


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


def test_on_the_command_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    spec = "{name: lm-eval, tasks: [quiz], task_folders: [tasks], limit: 5, metrics: [acc]}"
    with pytest.raises(SystemExit) as done:
        main(["eval", "model", "--evaluate", spec, "--json"])
    out, err = capfd.readouterr()
    assert not done.value.code, err
    assert list(json.loads(out)["figures"]) == ["lm-eval/quiz/acc", "lm-eval/quiz/acc/stderr"]
    assert err == "loading model\n"


def test_mistakes_are_said_before_the_model_is_loaded(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    spec = "{name: lm-eval, tasks: [quizz], task_folders: [tasks]}"
    with pytest.raises(SystemExit) as done:
        main(["eval", "model", "--evaluate", spec])
    assert done.value.code == 2
    err = capfd.readouterr().err
    assert err.startswith("error: lm-eval knows no task 'quizz'\n  hint: did you mean 'quiz'?")
