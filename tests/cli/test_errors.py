"""What each kind of error prints, and the exit code that it gets."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

from permllm.cli import errors
from permllm.errors import RunFailed, UserError


def calling(error: BaseException, *, words: tuple[str, ...] = ()) -> int:
    """The exit code of a command line whose only command raises ``error``."""

    @click.group()
    @errors.debug_option
    def group() -> None:
        pass

    @group.command("break")
    @errors.debug_option
    def break_it() -> None:
        raise error

    return errors.call(group, ["break", *words])


def stopped(cause: BaseException) -> errors.StoppedError:
    error = errors.StoppedError("permllm run a.yaml --out b --resume")
    error.__cause__ = cause
    return error


def test_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    error = UserError("unknown key 'patern'", file="a.yaml", line=3, column=1, hint="pattern?")
    assert calling(error) == 2
    assert capsys.readouterr().err == (
        "error: a.yaml:3:1: unknown key 'patern'\n  hint: pattern?\n"
    )


def test_failed_run_names_the_command_that_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    assert calling(stopped(RunFailed("the loss is nan"))) == 1
    assert capsys.readouterr().err == (
        "error: the loss is nan\n  state kept; go on with: permllm run a.yaml --out b --resume\n"
    )


def test_interrupt_names_the_command_that_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    assert calling(stopped(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == (
        "interrupted\n  state kept; go on with: permllm run a.yaml --out b --resume\n"
    )


def test_interrupt_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert calling(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_unexpected_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert calling(ZeroDivisionError("division by zero\nand more")) == 1
    assert capsys.readouterr().err == (
        "error: ZeroDivisionError: division by zero\n  run again with --debug for the traceback\n"
    )


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), UserError("x"), RunFailed("x")])
def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    assert calling(error, words=("--debug",)) == (2 if isinstance(error, UserError) else 1)
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "--debug" not in said


def test_too_many_open_files_are_said_so(permllm, project: Path) -> None:
    command = [sys.executable, "-m", "permllm", "check", "tiny.yaml"]
    done = subprocess.run(
        command,
        cwd=project,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5)),
    )
    assert done.returncode == 1
    assert "error: too many open files: this process may open no more\n  hint: " in done.stderr
    assert "ulimit -n" in done.stderr
