"""Files that are there as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm.files import holds, write_json, write_text


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "text.md"
    for text in ("ä\n", "b"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [file.name for file in path.parent.iterdir()] == ["text.md"]


def test_what_was_there_stays_where_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.md"
    write_text(path, "before")

    def full_disk(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    assert not holds(path, {})
    write_json(path, {"label": "größe"})
    assert "größe" in path.read_text(encoding="utf-8")
    assert holds(path, {"label": "größe"})
    assert not holds(path, {"label": "size"})
