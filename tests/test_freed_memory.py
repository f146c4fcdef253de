"""What becomes of memory that is free again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from permllm.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    torch.ones(2**24)
for _ in range(20):  # aligned pieces find their place after a few rounds
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
def test_memory_is_kept_for_the_next_tensors() -> None:
    def faults(mode: str) -> int:
        run = [sys.executable, "-c", FAULTS, mode]
        return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < faults("leave") / 10


HOLES = """
import re, sys, torch
from permllm.freed_memory import (
    give_back_freed_memory, keep_freed_memory, limit_freed_memory
)
def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
keep_freed_memory()
kept = [torch.ones(2**20) for _ in range(256)]  # 4 MiB each
del kept[::2]
if sys.argv[1] == "limit":
    limit_freed_memory(2**28)
if sys.argv[1] == "give back":
    circle = [kept]
    circle.append(circle)
    del kept, circle
    give_back_freed_memory()
print(own())
"""


def own(mode: str) -> float:
    """MiB that a process of its own holds in the end."""
    run = [sys.executable, "-c", HOLES, mode]
    return float(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
def test_holes_are_given_back_once_they_are_many() -> None:
    assert own("leave") - own("limit") > 400


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
def test_all_that_is_free_is_given_back_circles_included() -> None:
    # Half of the tensors were free, the other half is held by a circle.
    assert own("leave") - own("give back") > 900
