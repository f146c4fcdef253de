"""The event log read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

from permllm.runs.events import FILE, finite, read_events


def test_half_a_line_of_a_killed_process_is_passed_over(tmp_path: Path) -> None:
    lines = [json.dumps({"event": "a"}), '{"event": "b', "[1]", json.dumps({"event": "c"})]
    (tmp_path / FILE).write_text("\n".join(lines), encoding="utf-8")
    assert [event["event"] for event in read_events(tmp_path)] == ["a", "c"]


def test_bytes_that_are_no_text_lose_one_line_only(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"event": "a"}\n\xff\xfe\n{"event": "b"}\n')
    assert [event["event"] for event in read_events(tmp_path)] == ["a", "b"]


def test_without_a_log_there_are_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []


def test_what_json_lacks_becomes_null() -> None:
    data = {"a": math.nan, "b": [math.inf, 1.5, ("x", -math.inf)], "c": {"d": 2}}
    assert finite(data) == {"a": None, "b": [None, 1.5, ["x", None]], "c": {"d": 2}}


def test_lines_that_json_gives_up_on_are_passed_over(tmp_path: Path) -> None:
    lines = ['{"event": "a"}', '{"event": %s}' % ("9" * 5000), "[" * 10**5, '{"event": "b"}']
    (tmp_path / FILE).write_text("\n".join(lines), encoding="utf-8")
    assert [event["event"] for event in read_events(tmp_path)] == ["a", "b"]
