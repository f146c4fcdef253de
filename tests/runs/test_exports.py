"""An export that a result claims is looked at before it is believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm.runs import exports


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with the export `masked`."""
    unfinished = tmp_path / "unfinished"
    for name, text in {"config.json": "{}", "deep/weights": "1 2 3"}.items():
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        (unfinished / name).write_text(text)
    run = tmp_path / "cp"
    exports.note(run, "masked", unfinished)
    (run / exports.FOLDER).mkdir()
    unfinished.rename(run / exports.FOLDER / "masked")
    return run


def believed(run: Path) -> list[str]:
    """What is said of the export; nothing where it is believed."""
    warnings: list[str] = []
    assert exports.are_whole(run, {"masked": "x"}, warnings.append) == (not warnings)
    return warnings


def test_what_was_written_is_believed_and_what_lies_beside_is_no_matter(run: Path) -> None:
    (run / "exports/masked/notes.txt").write_text("mine")
    exports.note(run, "other", run / "exports/masked")
    assert believed(run) == []
    assert exports.are_whole(run, {}, lambda message: None)


@pytest.mark.parametrize("name", ["config.json", "deep/weights"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "folder"])
def test_a_damaged_export_is_set_aside(run: Path, name: str, damage: str) -> None:
    path = run / "exports/masked" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(content[:-1] + (b"?" if damage == "flipped" else b""))
    (run / "exports/masked/notes.txt").write_text("mine")
    (first, second) = believed(run)
    assert name in first
    assert "is made again" in second
    assert not (run / "exports/masked").exists()
    (aside,) = (run / "exports").glob("masked.before-*")
    assert (aside / "notes.txt").read_text() == "mine"


def test_a_missing_export_is_made_again(run: Path) -> None:
    (run / "exports/masked").rename(run / "elsewhere")
    assert believed(run) == ["the export 'masked' of 'cp' is made again"]


@pytest.mark.parametrize("text", [None, "", "[]", '{"exports": {"masked": 3}}'])
def test_a_listing_that_says_nothing_is_not_believed(run: Path, text: str | None) -> None:
    path = run / exports.LISTING
    path.unlink() if text is None else path.write_text(text)
    assert "nothing says what it should hold" in believed(run)[0]
