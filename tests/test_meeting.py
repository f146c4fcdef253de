"""Meeting the processes that were started together."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from torchrun import torchrun

from permllm.errors import UserError
from permllm.meeting import VARIABLES, world_of_processes


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> int:
    """The second of two processes, whose first does not answer at this port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    for name, value in zip(VARIABLES, ("1", "2", "127.0.0.1", str(port)), strict=True):
        monkeypatch.setenv(name, value)
    return port


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # as clusters leave it around
    with world_of_processes() as world:
        assert (world.rank, world.size) == (0, 1)


def test_of_one_that_torchrun_started_alone_nothing_is_met(
    nobody: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with world_of_processes() as world:
        assert world.size == 1


def test_an_address_that_does_not_answer_is_named(nobody: int) -> None:
    began = time.monotonic()
    with (
        pytest.raises(UserError, match=rf"cannot be met at 127\.0\.0\.1:{nobody}") as caught,
        world_of_processes(joining=0.5),
    ):
        pass
    assert "torchrun" in str(caught.value.hint)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("name", "value"), [("MASTER_PORT", "x"), ("MASTER_ADDR", "no.such.host")])
def test_an_address_that_is_none_is_named(
    nobody: int, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=value), world_of_processes(joining=0.1):
        pass


LATE = """\
import time
from datetime import timedelta

from permllm.meeting import world_of_processes
from permllm.world import ProcessLost

with world_of_processes(patience=timedelta(seconds=2)) as world:
    world.gathered([world.rank])
    if world.rank == 1:
        time.sleep(8)
    else:
        try:
            world.gathered([world.rank])
        except ProcessLost as error:
            print(error, flush=True)
            raise SystemExit(3)
"""


def test_one_that_does_not_answer_in_time_is_not_waited_for(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(LATE)
    done = torchrun(2, script)
    assert done.returncode != 0
    assert "another process than process 0 of 2 on" in done.stdout
    assert "has ended, or does not answer" in done.stdout


ENDING = """\
from pathlib import Path

from permllm.meeting import world_of_processes

with world_of_processes() as world:
    import torch._dynamo  # as models do when they are first called

    world.gathered([world.rank])
print([thread for thread in Path("/proc/self/task").glob("*/comm") if "gloo" in thread.read_text()])
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed in /proc")
def test_no_thread_of_the_connection_outlives_it(tmp_path: Path) -> None:
    # One that holds a tensor while Python ends aborts the process.
    script = tmp_path / "ending.py"
    script.write_text(ENDING)
    done = torchrun(2, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "[]"]
