"""A run's folder has one owner at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import attrs
import pytest

from permllm.errors import UserError
from permllm.files import workplace, write_sealed
from permllm.runs.lock import OWNER, Owner, owned

HOLDER = """
import sys, time
from pathlib import Path
from permllm.runs.lock import owned

with owned(Path(sys.argv[1]), print):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A process that has the folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_in_use_is_refused_and_says_by_whom(tmp_path: Path, holder) -> None:
    warnings: list[str] = []
    with (
        pytest.raises(UserError, match=f"in use by process {holder.pid} on .* \\(since 20"),
        owned(tmp_path, warnings.append),
    ):
        pass
    assert warnings == []
    assert (tmp_path / OWNER).exists()


def test_the_lock_of_a_dead_owner_is_taken_over_with_a_word(tmp_path: Path, holder) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    warnings: list[str] = []
    with owned(tmp_path, warnings.append):
        assert len(warnings) == 1
        assert f"process {holder.pid} on" in warnings[0]
        assert "ended without finishing" in warnings[0]
    with owned(tmp_path, warnings.append):
        pass
    assert len(warnings) == 1


def test_the_owner_is_named_and_not_the_dead_one_before(tmp_path: Path, holder) -> None:
    """Between getting the folder and saying so lies a moment."""
    mine = (tmp_path / OWNER).read_bytes()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    before = attrs.evolve(Owner.me(), pid=dead.pid)
    write_sealed(tmp_path / OWNER, attrs.asdict(before))
    later = threading.Timer(0.3, (tmp_path / OWNER).write_bytes, [mine])
    later.start()
    with pytest.raises(UserError, match=f"process {holder.pid} "), owned(tmp_path, print):
        pass
    later.join()


def test_what_dead_processes_left_unfinished_below_goes(tmp_path: Path) -> None:
    with workplace(tmp_path / "runs/dense") as work:
        name = work.name
    left = tmp_path / "runs/dense" / name
    left.mkdir()
    with owned(tmp_path, print):
        assert not left.exists()


def test_within_one_process_too(tmp_path: Path) -> None:
    with (
        owned(tmp_path, print),
        pytest.raises(UserError, match=f"process {os.getpid()}"),
        owned(tmp_path, print),
    ):
        pass
    with owned(tmp_path, print):
        pass


def test_a_damaged_note_of_the_owner_says_nothing(tmp_path: Path) -> None:
    for content in (b"", b"[]", b"\xff"):
        (tmp_path / OWNER).write_bytes(content)
        warnings: list[str] = []
        with owned(tmp_path, warnings.append):
            assert warnings == []
    write_sealed(tmp_path / OWNER, attrs.asdict(Owner.me()) | {"pid": "\x1b[31m"})
    with owned(tmp_path, warnings.append):
        assert warnings == []
