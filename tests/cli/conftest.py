"""Calls of the command line, and a tiny model to call it on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forks import Forks

Call = Callable[..., "subprocess.CompletedProcess[str]"]

PIPELINE = """\
permllm: 1
name: tiny
model: {source: directory, path: model}
calibration: {dataset: {name: text, path: text.txt}, sequences: 4, length: 16, held_out: 2}
pattern: "2:4"
layers: {window: 1}
matrix:
  layers.permutation:
    - none
    - &short {name: cp, rounds: 2, steps: 2}
    - {name: lcp, passes: 2, block: 8, start: *short}
evaluate:
  - {name: perplexity, dataset: {name: text, path: text.txt}, length: 16, max_tokens: 128}
export: [masked]
track: {}
"""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "COLUMNS": "160"}


def environment(**variables: str) -> dict[str, str]:
    """The variables of a call: those of a user, even where tox runs the tests."""
    kept = {name: value for name, value in os.environ.items() if name != "TOX_ENV_DIR"}
    return kept | ENVIRONMENT | variables


@pytest.fixture(scope="session")
def permllm(forks: Forks) -> Call:
    """``python -m permllm …`` to its end; plots are not drawn unless they are asked for."""

    def call(
        *words: str | Path, cwd: Path | None = None, draw: bool = False, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return forks.run(*words, cwd=cwd, environment=environment(**variables), sketch=not draw)

    return call


@pytest.fixture(scope="session")
def pasted(permllm: Call) -> Call:
    """A command that was printed, with more words; `tests/test_commands.py` has a shell run one."""

    def call(command: str, *more: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        _, option, module, *words = shlex.split(command)
        assert (option, module) == ("-m", "permllm"), command
        return permllm(*words, *more, cwd=cwd)

    return call


def unignore() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """The same without waiting for its end; what is left is killed after the test."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*words: str | Path, cwd: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "permllm", *map(str, words)],
            cwd=cwd,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # Tests that run in the background of a shell ignore interruptions, and what they
            # start would, too.
            preexec_fn=unignore,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_project: Callable[..., Path]) -> Path:
    """A folder with a tiny model, a text and a pipeline file."""
    return tiny_project(tmp_path_factory.mktemp("project"), PIPELINE)


@pytest.fixture(scope="session")
def cp_only() -> list[str]:
    """Settings of the pipeline file for one pruned run that measures nothing."""
    matrix = "matrix={layers.permutation: [{name: cp, rounds: 2, steps: 2}]}"
    return ["--set", matrix, "--set", "evaluate=[]"]


@pytest.fixture(scope="session")
def exports(permllm: Call, project: Path, cp_only: list[str]) -> Path:
    """The exports of one finished run, for tests that read them."""
    words = [*cp_only, "--set", "export=[masked, permuted, sparse]", "--out", "saved"]
    done = permllm("run", "tiny.yaml", *words, cwd=project)
    assert done.returncode == 0, done.stderr
    return project / "saved" / "runs" / "cp" / "exports"


WORKING = """\
import attrs
import click
import permllm
from permllm.components import Metric


@attrs.frozen
class Breaks(Metric):
    '''Breaks as soon as it is used.'''

    name = "breaks"

    def scores(self, weight, statistics):
        raise ArithmeticError("not today")


@permllm.hookimpl
def permllm_metrics():
    return [Breaks]


@permllm.hookimpl
def permllm_commands(group):
    @group.command()
    def hello():
        '''Say hello.'''
        click.echo("hello")

    @group.command("run")
    def not_the_real_one():
        click.echo("intruder")
"""


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for PYTHONPATH with a plugin that works and one that cannot be imported."""
    folder = tmp_path_factory.mktemp("plugins")
    for name, code in (("works", WORKING), ("broken", "raise ImportError('no such luck')\n")):
        (folder / f"permllm_{name}.py").write_text(code)
        info = folder / f"permllm_{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: permllm-{name}\nVersion: 1.5\n"
        )
        (info / "entry_points.txt").write_text(f"[permllm]\n{name} = permllm_{name}\n")
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
