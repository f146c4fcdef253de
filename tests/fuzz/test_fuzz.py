"""What watches the reading of changed files notices what it should."""

from __future__ import annotations

import time
from typing import Any

import pytest

from permllm.errors import UserError

VALID = b'{"a": 1}'


def test_refusals_are_no_failures_and_other_errors_are(fuzz: Any) -> None:
    def refuse(change: Any) -> None:
        if change.raw(VALID) != VALID:
            raise UserError("no")

    def fail(change: Any) -> None:
        if change.raw(VALID) != VALID:
            raise KeyError("a")

    fuzz(refuse, 1000)
    with pytest.raises(KeyError):
        fuzz(fail, 1000)


def test_a_valid_file_must_not_be_refused(fuzz: Any) -> None:
    def refuse(change: Any) -> None:
        raise UserError("no")

    with pytest.raises(AssertionError, match="the valid file is refused: no"):
        fuzz(refuse, 1000)


def test_what_takes_too_long_fails(fuzz: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fuzz.__globals__, "CPU_SECONDS", 0.05)
    monkeypatch.setitem(fuzz.__globals__, "SECONDS", 0.1)

    def work(change: Any) -> None:
        while change.bytes:
            pass

    def sleep(change: Any) -> None:
        time.sleep(0.5 if change.bytes else 0)

    for slow in (work, sleep):
        with pytest.raises(AssertionError, match="one input took more than"):
            fuzz(slow, 20)


def test_what_takes_too_much_memory_fails(fuzz: Any) -> None:
    def take(change: Any) -> None:
        bytearray(2**31 if change.bytes else 1)

    with pytest.raises(MemoryError):
        fuzz(take, 20)


def test_changes_are_the_same_each_time_and_of_all_kinds(fuzz: Any) -> None:
    seen: list[Any] = []
    fuzz(seen.append, 5000)
    again, seen = seen, []
    fuzz(seen.append, 5000)
    assert len(seen) > 50
    assert seen == again or fuzz.__globals__["FULL"]
    kinds = {step[0] for change in seen for step in (*change.structure, *change.bytes)}
    assert kinds == {*fuzz.__globals__["BYTES"], *fuzz.__globals__["STRUCTURE"]}
