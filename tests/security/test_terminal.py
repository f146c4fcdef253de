"""Names from data do nothing to the terminal that they are printed on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from permllm.cli import errors
from permllm.cli.main import cli
from permllm.files import read_sealed, write_sealed

EVIL = "evil \x1b[31m[/b]\x07"
FOLDER = "evil \x1b[31m[red]\x07"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints, whatever comes of it."""

    def say(*words: str | Path, code: int) -> str:
        monkeypatch.setenv("COLUMNS", "200")
        assert errors.call(cli, list(map(str, words))) == code
        out, err = capfd.readouterr()
        return out + err

    return say


def test_folders_and_labels(
    project: Path, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / "model").rename(project / FOLDER)
    pipeline = project / "tiny.yaml"
    text = pipeline.read_text().replace("path: model", f"path: {json.dumps(FOLDER)}")
    pipeline.write_text(text + 'matrix: {layers.permutation: {"[/b] a": none, b: cp}}\n')
    texts = [
        said("check", "tiny.yaml", code=0),
        said("run", "tiny.yaml", "--dry-run", code=0),
        said("show", "tiny.yaml", code=0),
        said("run", "tiny.yaml", "--out", FOLDER + "out", code=0),
        said("compare", FOLDER + "out", code=0),
        said("inspect", next(Path(FOLDER + "out").rglob("permuted")), code=0),
        said("eval", FOLDER, "--evaluate", "sparsity", code=0),
        said("eval", "no" + FOLDER, code=2),
        said("check", "no" + FOLDER, code=2),
    ]
    for text in texts:
        assert "\x1b" not in text
        assert "\x07" not in text
    for text in (texts[3], texts[5], texts[6], texts[7], texts[8]):
        assert r"evil \x1b[31m[red]\x07" in text
    for text in (texts[1], texts[2], texts[3], texts[4]):
        assert "[/b] a" in text


def test_a_manifest(
    project: Path, said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert "fine" in said("check", "tiny.yaml", code=0)
    said("run", "tiny.yaml", "--out", "out", code=0)
    export = project / "out" / "runs" / "none" / "exports" / "permuted"
    manifest = read_sealed(export / "permllm.json")
    manifest["groups"][0]["linears"][0] += EVIL
    write_sealed(export / "permllm.json", manifest)
    shown = said("inspect", export, code=0)
    assert "\x1b" not in shown
    assert r"\x1b[31m[/b]\x07" in shown
