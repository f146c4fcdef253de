"""JSON lines: each gives the text in its field, and broken ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm.datasets.jsonl import JsonLines
from permllm.errors import UserError


def test_json_lines_give_their_field(tmp_path: Path, write) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one", "n": 1}\n\n{"text": ""}\r\n{"text": "two"}')
    assert list(JsonLines(path).texts("train")) == ["one", "two"]
    path = write(tmp_path / "b.jsonl", '{"body": "three"}\n')
    JsonLines(path, field="body").check()
    assert list(JsonLines(path, field="body").texts("test")) == ["three"]
    assert JsonLines(path).label() == "b"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('{"text": "two"', r"a\.jsonl:2:15: this line is not JSON"),
        ('{"txt": "two"}', r"a\.jsonl:2: no field 'text' .*\n.*did you mean 'txt'"),
        ('{"text": 2}', r"a\.jsonl:2: the field 'text' must hold a text, not 2"),
        ('["two"]', r"a\.jsonl:2: expected an object"),
        ("[" * 100_000, r"a\.jsonl:2"),
        ('{"text": "two", "n": %s}' % ("9" * 5000), r"a\.jsonl:2: a number is too long"),
        ('{"text": "two\\ud800"}', r"a\.jsonl:2: the field 'text' holds half of a character"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, broken: str, message: str, write) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n' + broken + "\n")
    with pytest.raises(UserError, match=message):
        list(JsonLines(path).texts("train"))


def test_the_offset_of_a_wrong_byte_counts_from_the_start_of_the_file(
    tmp_path: Path, write
) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: not UTF-8: byte 0xff at offset 26"):
        list(JsonLines(path).texts("train"))


def test_json_lines_without_any_text_are_refused(tmp_path: Path, write) -> None:
    with pytest.raises(UserError, match="has no text in its field 'text'"):
        list(JsonLines(write(tmp_path / "a.jsonl", '{"text": " "}\n')).texts("train"))


def test_check_looks_at_the_first_line_only(tmp_path: Path, write) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n{broken\n')
    assert JsonLines(path).check() is None
    with pytest.raises(UserError, match="no field 'body'"):
        JsonLines(path, field="body").check()
