"""Rows come with the lines that they begin in, whatever form the file has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from permllm.datasets.rows import read_json, read_table
from permllm.errors import UserError

ROWS = [{"text": "a\nb"}, {"text": "c"}]


def test_json_lines_and_arrays_are_the_same_rows(tmp_path: Path) -> None:
    lines, array = tmp_path / "lines.json", tmp_path / "array.json"
    lines.write_text("\n\n".join(map(json.dumps, ROWS)))
    array.write_text(json.dumps(ROWS, indent=1))
    assert list(read_json(lines)) == [(1, ROWS[0]), (3, ROWS[1])]
    assert [row for _, row in read_json(array)] == ROWS


def test_cells_may_hold_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,id\n"a\nb",1\nc,2\n')
    assert list(read_table(path)) == [
        (2, {"text": "a\nb", "id": "1"}),
        (4, {"text": "c", "id": "2"}),
    ]


def test_a_row_with_other_cells_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("text\tid\na\t1\nb\n")
    with pytest.raises(UserError, match="1 cells in this row") as caught:
        list(read_table(path))
    assert (caught.value.file, caught.value.line) == (str(path), 3)
