"""Interruptions: none is lost, none is told twice, and a second one ends the process."""

from __future__ import annotations

import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from permllm.cli.interrupts import Interrupted, interruptible
from permllm.registry import Registry

DEFAULT = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
SIGNALS = list(DEFAULT)


class Dropping:
    """Is interrupted while it is destroyed."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr("sys.unraisablehook", lambda told: None)
    return Registry.load()


@pytest.fixture(autouse=True)
def nobodys_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in DEFAULT.items():
        signal.signal(number, handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers() -> dict[signal.Signals, object]:
    return {number: signal.getsignal(number) for number in SIGNALS}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_dropped_interruption_is_raised_again(registry: Registry, number: signal.Signals) -> None:
    def report(stage: str) -> None:
        registry.manager.hook.permllm_progress(run=None, stage=stage, done=0, total=1)

    with interruptible(), interruptible(registry):
        report("before")
        Dropping(number)
        with pytest.raises(Interrupted) as caught:
            report("after")
        assert caught.value.signal is number
    report("outside")
    assert handlers() == DEFAULT


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interruption_ends_the_block_at_once(registry: Registry, number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt, match=f"^{number.name}$"), interruptible(registry):
        signal.raise_signal(number)
    assert handlers() == DEFAULT


def test_what_ends_a_run_is_not_interrupted_once_more(registry: Registry) -> None:
    hook = registry.manager.hook
    with interruptible(registry):
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        hook.permllm_plan_failed(run=None, error=KeyboardInterrupt())
        hook.permllm_progress(run=None, stage="writing", done=0, total=1)


def test_after_the_first_signal_the_kernel_ends_the_process() -> None:
    with interruptible():
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        assert set(handlers().values()) == {signal.SIG_DFL}


def test_a_terminal_that_closes_may_say_so_twice() -> None:
    with interruptible():
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", SIGNALS)
def test_other_handlers_and_threads_are_left_alone(
    registry: Registry, number: signal.Signals
) -> None:
    signal.signal(number, signal.SIG_IGN)
    with interruptible(registry):
        assert signal.getsignal(number) is signal.SIG_IGN
        assert {signal.getsignal(other) for other in SIGNALS if other != number}.isdisjoint(
            DEFAULT.values()
        )
    signal.signal(number, DEFAULT[number])
    found: list[object] = []

    def elsewhere() -> None:
        with interruptible(registry):
            found.append(handlers())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [DEFAULT]


# --- processes ------------------------------------------------------------------------

WAITS = """\
import os, signal, sys, threading, time
import click
from permllm.cli import errors

@click.group(invoke_without_command=True)
@errors.debug_option
def cli():
    try:
        print("waiting", flush=True)
        time.sleep(60)
    finally:
        if sys.argv[1:] == ["slow"]:
            print("ending", flush=True)
            time.sleep(60)

sys.exit(errors.call(cli, []))
"""


def waiting(*words: str, **options: Any) -> subprocess.Popen[str]:
    """A process of the command line that waits, once it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    return process


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "interrupted by SIGTERM"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP"),
    ],
)
def test_every_command_ends_with_the_signals_code(number: int, code: int, said: str) -> None:
    process = waiting()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (code, said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_though_it_is_busy(number: int) -> None:
    process = waiting("slow")
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stdout.readline() == "ending\n"
    process.send_signal(number)
    assert process.wait(60) == -number
    process.communicate()


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    process = waiting(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (143, "interrupted by SIGTERM")


def test_nobody_need_be_there_to_read_it() -> None:
    process = waiting()
    assert process.stderr is not None
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 129
    process.communicate()


# --- runs -----------------------------------------------------------------------------

STUDY = [
    "--set", "layers.permutation={name: lcp, steps: 120, batch: 4, block: 8, start: none}",
    "--set", "matrix={layers.metric: [wanda]}",
    "--set", "track=[mlflow]",
]  # fmt: skip


def until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not there() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


def statuses(store: Path) -> list[str]:
    with sqlite3.connect(store) as database:
        found = [status for (status,) in database.execute("SELECT status FROM runs")]
    database.close()
    return sorted(found)


@pytest.fixture(scope="module")
def whole(permllm, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study that nobody stops."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = permllm("run", "tiny.yaml", *STUDY, "--out", out, cwd=project)
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_that_is_ended_in_learning_keeps_its_state(
    permllm, start, project: Path, whole: Path, tmp_path: Path
) -> None:
    """By SIGTERM; SIGINT is that of `test_run.py`, and SIGHUP that of a terminal that is gone."""
    from safetensors.torch import load_file

    out = tmp_path / "run"
    process = start("run", "tiny.yaml", *STUDY, "--out", out, cwd=project)
    events = out / "events.jsonl"
    # In the second window, so that there is something to keep.
    until(
        lambda: (
            any(out.glob("runs/*/windows/000.safetensors"))
            and '"training_step"' in events.read_text().rpartition('"window_finished"')[2]
        ),
        process,
    )
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert said.count("interrupted") == 1, said
    assert "interrupted by SIGTERM\n  state kept; go on with: " in said
    assert statuses(tmp_path / "mlflow.db") == ["FINISHED", "KILLED", "KILLED"]
    words = shlex.split(said.rpartition("go on with: ")[2])
    done = permllm(*words[words.index("run") :], cwd=project)
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path / "mlflow.db") == ["FINISHED"] * 3
    paths = sorted(whole.glob("runs/*/windows/*.safetensors"))
    assert len(paths) == 2
    for path in paths:
        here, there = load_file(path), load_file(out / path.relative_to(whole))
        assert here.keys() == there.keys()
        assert all((here[name] == there[name]).all() for name in here), path


def test_an_export_that_is_ended_leaves_nothing(
    start, project: Path, exports: Path, tmp_path: Path
) -> None:
    run = exports.parent
    process = start("export", run, "--format", "sparse", "--to", tmp_path / "new", cwd=project)
    until(lambda: bool(list(tmp_path.iterdir())), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_terminal_is_gone_ends_in_order(project: Path, tmp_path: Path) -> None:
    """Nothing can be written to it any more."""
    import pty

    ours, theirs = pty.openpty()

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    out = tmp_path / "run"
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-m", "permllm", "run", "tiny.yaml", *STUDY, "--out", str(out)],
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        text=True,
        preexec_fn=prepare,
    )
    os.close(theirs)
    try:
        # Until it learns, what it draws has to be read, or the terminal is full.
        events = out / "events.jsonl"
        while not (events.exists() and '"training_step"' in events.read_text()):
            assert process.poll() is None
            os.read(ours, 4096)
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 129
    finally:
        process.kill()
        process.wait()
    assert '"plan_failed"' in events.read_text()
    assert statuses(tmp_path / "mlflow.db") == ["FINISHED", "KILLED", "KILLED"]
