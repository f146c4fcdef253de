"""Every promise of SECURITY.md names tests, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMISES = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## What is verified")[0]


def test_every_promise_has_its_tests() -> None:
    promises = re.split(r"^\*\*", PROMISES.partition("## What is promised")[2], flags=re.M)[1:]
    assert len(promises) >= 7
    for promise in promises:
        (file,) = re.findall(r"\(`(tests/security/\w+\.py)`", promise)
        tests = re.findall(r"`(test_\w+)`", promise)
        text = (ROOT / file).read_text(encoding="utf-8")
        assert tests, promise
        for test in tests:
            assert f"\ndef {test}(" in text
