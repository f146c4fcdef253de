"""What the machine has run out of, from the errors of the libraries themselves."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from permllm.exhaustion import asked_for, cannot_write, out_of_memory, too_many_files

ALLOCATIONS = {
    "torch": "import torch; torch.empty(2**40)",
    "numpy": "import numpy; numpy.empty(2**40)",
    "python": "bytes(2**40)",
}

CHILD = """\
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
from permllm.exhaustion import asked_for, out_of_memory
try:
    exec(sys.argv[1])
except Exception as error:
    print(out_of_memory(error), asked_for(error))
"""


@pytest.mark.parametrize("library", ALLOCATIONS)
def test_allocations_that_fail(library: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, ALLOCATIONS[library]],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    amount = {"torch": "4096.0 GiB", "numpy": "8.00 TiB", "python": "None"}[library]
    assert done.stdout.strip() == f"True {amount}"


def test_a_device_without_room_and_whatever_is_raised_from_it() -> None:
    import torch

    message = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB"
    error = ValueError("the layer broke")
    error.__cause__ = torch.OutOfMemoryError(message)
    assert out_of_memory(error)
    assert asked_for(error) == "2.50 GiB"


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOSPC, "full")])
def test_other_errors_are_not_for_want_of_memory(error: Exception) -> None:
    assert not out_of_memory(error)
    assert asked_for(error) is None


WRITES = """\
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pathlib import Path
import torch, safetensors.torch
from permllm.exhaustion import cannot_write
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    exec(sys.argv[1])
except Exception as error:
    print(type(error).__name__, cannot_write(error))
"""


def writing(code: str) -> str:
    command = [sys.executable, "-c", WRITES, code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_files_that_cannot_grow(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    why = "the file would be larger than files may be here"
    assert writing(f"Path({path!r}).write_bytes(bytes(2000))") == f"OSError {why}"
    save = f"safetensors.torch.save_file({{'x': torch.zeros(1000)}}, {path!r})"
    assert writing(save) == f"SafetensorError {why}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_a_full_device() -> None:
    with (
        pytest.raises(OSError, match="No space") as caught,
        Path("/dev/full").open("wb", 0) as file,
    ):
        file.write(b"x")
    error = RuntimeError("the export broke")
    error.__cause__ = caught.value
    assert cannot_write(error) == "the disk is full"


def test_a_disk_that_can_only_be_read_and_errors_that_are_none() -> None:
    assert cannot_write(OSError(errno.EROFS, "Read-only file system")) is not None
    assert cannot_write(OSError(errno.EDQUOT, "Quota")) == "the disk quota is used up"
    assert cannot_write(RuntimeError("I/O error: … (os error 28)")) == "the disk is full"
    assert cannot_write(FileNotFoundError(errno.ENOENT, "no file")) is None
    assert cannot_write(RuntimeError("28")) is None


NONE_LEFT = """\
import os
from permllm.exhaustion import too_many_files
print(too_many_files(LookupError("unknown encoding: utf-7")))
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    b"x".decode("utf-7")
except Exception as error:
    print(type(error).__name__, too_many_files(error))
unknown = LookupError("unknown encoding: utf-7"), ModuleNotFoundError("no module"), ValueError()
print(*map(too_many_files, unknown))
"""


def test_what_python_misses_where_it_can_open_no_file() -> None:
    command = [sys.executable, "-c", NONE_LEFT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, codec, others = done.stdout.splitlines()
    assert before == "False"
    # Depending on what Python has looked at before, it passes over the error or raises it.
    assert codec in ("LookupError True", "OSError True")
    assert others == "True True False"


def test_too_many_open_files() -> None:
    mapped = RuntimeError("unable to mmap 128 bytes: Too many open files (24)")
    assert too_many_files(mapped)
    error = LookupError("unknown encoding: utf-8-sig")
    error.__context__ = OSError(errno.EMFILE, "Too many open files")
    assert too_many_files(error)
    assert not too_many_files(OSError(errno.ENOENT, "no file"))
