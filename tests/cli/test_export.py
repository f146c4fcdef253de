"""``permllm export``: a finished run in other formats."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest


def test_a_finished_run_is_exported_again(permllm, exports: Path, tmp_path: Path) -> None:
    run, to = exports.parent, tmp_path / "again"
    done = permllm("export", run, "--format", "{name: sparse, dtype: float32}", "--to", to)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(to)
    verified = permllm("verify", to, "--against", exports / "masked")
    assert verified.returncode == 0, verified.stderr
    again = permllm("export", run, "--format", "sparse", "--to", to)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_several_formats_are_written_at_once(permllm, exports: Path, tmp_path: Path) -> None:
    # A copy of the run without its other exports, which are for other tests.
    saved = exports.parents[2]
    shutil.copytree(saved, tmp_path / "saved", ignore=shutil.ignore_patterns("permuted", "sparse"))
    run = tmp_path / "saved" / exports.parent.relative_to(saved)
    done = permllm("export", run, "--format", "permuted", "--format", "sparse")
    assert done.returncode == 0, done.stderr
    written = [run / "exports" / kind for kind in ("permuted", "sparse")]
    assert done.stdout.split() == [str(path) for path in written]
    assert all((path / "permllm.json").exists() for path in written)
    refused = permllm("export", run, "--format", "masked", "--format", "sparse", "--to", run / "x")
    assert refused.returncode == 2
    assert "one folder" in refused.stderr


@pytest.mark.parametrize("broken", ["gone", "damaged"])
def test_a_lost_window_comes_back_as_the_hint_says(
    permllm, pasted, exports: Path, tmp_path: Path, project: Path, broken: str
) -> None:
    saved, out = exports.parents[2], tmp_path / "a study"
    shutil.copytree(saved, out)
    run = out / exports.parent.relative_to(saved)
    window = run / "windows/000.safetensors"
    whole = window.read_bytes()
    window.unlink()
    if broken == "damaged":
        window.write_bytes(whole[:-1])
    words = ("export", run, "--format", "masked", "--to", tmp_path / "to")
    refused = permllm(*words, cwd=project)
    assert refused.returncode == 2
    assert broken in refused.stderr
    shown = re.search("delete '(.+)', and it is pruned anew by: (.+)", refused.stderr)
    assert shown is not None
    Path(shown[1]).unlink()
    again = pasted(shown[2], cwd=project)
    assert again.returncode == 0, again.stderr
    assert permllm(*words, cwd=project).returncode == 0


@pytest.mark.parametrize(
    ("where", "spec", "message"),
    [
        ("../../..", "sparse", "name one of its runs"),
        ("../../dense", "sparse", "holds no pruned model"),
        ("..", "spars", "did you mean 'sparse'"),
    ],
)
def test_bad_exports_are_refused(
    permllm, exports: Path, where: str, spec: str, message: str, tmp_path: Path
) -> None:
    folder = (exports / where).resolve()
    done = permllm("export", folder, "--format", spec, "--to", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
