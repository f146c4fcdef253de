"""What a run recorded of its plugin files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from permllm.errors import UserError
from permllm.runs.plugin_files import recorded


def test_nothing_is_recorded_before_a_run_did_anything(tmp_path: Path) -> None:
    assert recorded(tmp_path, "tiny") is None


def test_what_was_recorded_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "runs" / "tiny-20260101-000000"
    out.mkdir(parents=True)
    (out / "pipeline.yaml").write_text("name: tiny")
    (out / "environment.json").write_text(json.dumps({"plugin_files": {"/a.py": "0f"}}))
    assert recorded(out, "another") == {"/a.py": "0f"}
    monkeypatch.chdir(tmp_path)
    # As --resume without --out finds it.
    assert recorded(None, "tiny") == {"/a.py": "0f"}
    with pytest.raises(UserError, match="no unfinished run of 'another'"):
        recorded(None, "another")


@pytest.mark.parametrize("files", [[], {"/a.py": 1}, "x"])
def test_a_damaged_record_is_refused(tmp_path: Path, files: object) -> None:
    (tmp_path / "environment.json").write_text(json.dumps({"plugin_files": files}))
    with pytest.raises(UserError, match=r"environment\.json: this is damaged: plugin_files"):
        recorded(tmp_path, "tiny")
