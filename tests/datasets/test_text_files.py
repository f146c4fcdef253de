from __future__ import annotations

from pathlib import Path

import pytest

from permllm.datasets.jsonl import JsonLines
from permllm.datasets.text import Text
from permllm.errors import UserError


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_a_text_file_is_one_document_named_after_it(tmp_path: Path) -> None:
    dataset = Text(write(tmp_path / "story.txt", "\ufeffonce\n\nupon a time"))
    assert list(dataset.texts("train")) == list(dataset.texts("test")) == ["once\n\nupon a time"]
    assert dataset.label() == "story"


def test_a_glob_is_taken_in_sorted_order_and_blank_files_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for name, text in {"b.txt": "second", "a.txt": "first", "c.txt": " \n", "d.md": "no"}.items():
        write(folder / name, text)
    write(folder / "deep" / "e.txt", "third")
    assert list(Text(folder / "*.txt").texts("train")) == ["first", "second"]
    assert list(Text(folder / "**" / "*.txt").texts("train")) == ["first", "second", "third"]
    assert Text(folder / "**" / "*.txt").label() == "texts"


@pytest.mark.parametrize("kind", [Text, JsonLines])
def test_a_missing_file_is_refused_with_the_nearest(tmp_path: Path, kind: type) -> None:
    write(tmp_path / "corpus.txt", "x")
    with pytest.raises(UserError, match=r"there is no file .*corpse\.txt.*\n.*'corpus\.txt'"):
        kind(tmp_path / "corpse.txt").check()
    with pytest.raises(UserError, match="no file matches"):
        kind(tmp_path / "*.md").check()
    with pytest.raises(UserError, match="is a folder"):
        kind(tmp_path).check()
    with pytest.raises(UserError, match=r"the folder .* does not exist"):
        kind(tmp_path / "absent" / "a.txt").check()


@pytest.mark.parametrize("text", ["", " \n\t\n", "\ufeff"])
def test_an_empty_text_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="has no text"):
        list(Text(write(tmp_path / "a.txt", text)).texts("train"))


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"caf\xe9 noir")
    with pytest.raises(UserError, match="byte 0xe9 at offset 3"):
        list(Text(path).texts("train"))


def test_json_lines_give_their_field(tmp_path: Path) -> None:
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
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, broken: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n' + broken + "\n")
    with pytest.raises(UserError, match=message):
        list(JsonLines(path).texts("train"))


def test_the_offset_of_a_wrong_byte_counts_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: not UTF-8: byte 0xff at offset 26"):
        list(JsonLines(path).texts("train"))


def test_json_lines_without_any_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no text in its field 'text'"):
        list(JsonLines(write(tmp_path / "a.jsonl", '{"text": " "}\n')).texts("train"))


def test_check_looks_at_the_first_line_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n{broken\n')
    assert JsonLines(path).check() is None
    with pytest.raises(UserError, match="no field 'body'"):
        JsonLines(path, field="body").check()
