"""Text files: each is one document."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm.datasets.text import Text
from permllm.errors import UserError


def test_a_text_file_is_one_document_named_after_it(tmp_path: Path, write) -> None:
    dataset = Text(write(tmp_path / "story.txt", "\ufeffonce\n\nupon a time"))
    assert list(dataset.texts("train")) == list(dataset.texts("test")) == ["once\n\nupon a time"]
    assert dataset.label() == "story"


def test_a_glob_is_taken_in_sorted_order_and_blank_files_are_left_out(
    tmp_path: Path, write
) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for name, text in {"b.txt": "second", "a.txt": "first", "c.txt": " \n", "d.md": "no"}.items():
        write(folder / name, text)
    write(folder / "deep" / "e.txt", "third")
    assert list(Text(folder / "*.txt").texts("train")) == ["first", "second"]
    assert list(Text(folder / "**" / "*.txt").texts("train")) == ["first", "second", "third"]
    assert Text(folder / "**" / "*.txt").label() == "texts"


@pytest.mark.parametrize("text", ["", " \n\t\n", "\ufeff"])
def test_an_empty_text_is_refused(tmp_path: Path, text: str, write) -> None:
    with pytest.raises(UserError, match="has no text"):
        list(Text(write(tmp_path / "a.txt", text)).texts("train"))
