"""Printed commands call what printed them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from permllm import commands


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``a bin`` with programs; nothing else is on PATH."""
    folder = tmp_path / "a bin"
    folder.mkdir()
    for name in ("python", "permllm", "pip", "mlflow"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return folder


def test_names_where_the_shell_finds_them(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    for called in (here / "permllm", "/x/pytest", "-c"):
        monkeypatch.setattr(sys, "argv", [str(called)])
        assert commands.own("run", "a b.yaml") == "permllm run 'a b.yaml'"
    monkeypatch.setattr(sys, "argv", ["/x/permllm/__main__.py"])
    assert commands.own("check", Path("x.yaml")) == "python -m permllm check x.yaml"
    assert commands.program("mlflow", "ui") == "mlflow ui"
    assert commands.program("pytest") == "python -m pytest"
    assert commands.pip_install("permllm>=7") == "pip install 'permllm>=7'"


@pytest.mark.parametrize("borrowed", ["", *commands.BORROWED])
def test_paths_where_it_does_not(
    here: Path, monkeypatch: pytest.MonkeyPatch, borrowed: str
) -> None:
    if borrowed:
        monkeypatch.setenv("PATH", str(here))
        monkeypatch.setenv(borrowed, "1")
    path = shlex.quote(str(here / "permllm"))
    for called in ("a bin/permllm", here / "permllm", "/x/pytest"):
        monkeypatch.setattr(sys, "argv", [str(called)])
        assert commands.own("run", "x.yaml") == f"{path} run x.yaml"
    monkeypatch.setattr(sys, "argv", ["/x/permllm/__main__.py"])
    python = shlex.quote(str(here / "python"))
    assert commands.own() == f"{python} -m permllm"
    assert commands.program("mlflow", "ui") == f"{shlex.quote(str(here / 'mlflow'))} ui"
    assert commands.pip_install("--upgrade", "x") == f"{python} -m pip install --upgrade x"


def test_another_environment_is_not_called(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = here.with_name("other")
    other.mkdir()
    (other / "permllm").symlink_to(here / "permllm")
    monkeypatch.setenv("PATH", str(other))
    monkeypatch.setattr(sys, "argv", [str(here / "permllm")])
    assert commands.own("run") == f"{shlex.quote(str(here / 'permllm'))} run"
    monkeypatch.setattr(sys, "argv", [str(other / "permllm")])
    assert commands.own("run") == "permllm run"


def test_without_pip_uv_installs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_has_pip", lambda: False)
    (here.parent / "uv").write_text("")
    (here.parent / "uv").chmod(0o755)
    said = commands.pip_install("x")
    assert said == f"uv pip install x --python {shlex.quote(str(here / 'python'))}"


def test_what_is_printed_runs_when_pasted(tmp_path: Path) -> None:
    tell = [sys.executable, "-m", "permllm", "--no-such-option"]
    said = subprocess.run(tell, capture_output=True, text=True, cwd=tmp_path, check=False).stderr
    command = said.partition("Try '")[2].partition("' for help")[0]
    assert command.endswith("-m permllm --help")
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
