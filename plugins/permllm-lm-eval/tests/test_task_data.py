from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from permllm_lm_eval.task_data import check_data
from permllm_lm_eval.task_files import TaskFile

from permllm.errors import UserError


def check(*, download: bool = False, **settings: Any) -> None:
    check_data("quiz", TaskFile(Path("quiz.yaml"), settings), download=download)


def files(value: Any, **options: Any) -> dict[str, Any]:
    return {"dataset_path": "json", "dataset_kwargs": {"data_files": value, **options}}


def test_files_that_are_there(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    check(**files(str(tmp_path / "a.jsonl")))
    check(**files([str(tmp_path / "a.jsonl"), str(tmp_path / "*.jsonl")]))
    check(**files({"train": str(tmp_path / "a.jsonl"), "test": [str(tmp_path / "b.jsonl")]}))
    check(**files("a.jsonl", data_dir=str(tmp_path)))
    check(dataset_path="json")
    check(dataset_path=str(tmp_path))
    check(custom_dataset="utils.load")


def test_files_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quiz.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    check(**files("quiz.jsonl"))
    with pytest.raises(UserError, match=r"^quiz\.yaml: .*quiz\.json', which does not") as caught:
        check(**files({"test": ["quiz.jsonl", "quiz.json"]}))
    assert caught.value.hint == "did you mean 'quiz.jsonl'?"
    with pytest.raises(UserError, match="elsewhere") as caught:
        check(**files("elsewhere/quiz.jsonl"), download=True)
    assert "current folder" in str(caught.value.hint)


def test_what_has_to_be_fetched(own_cache: Path) -> None:
    hub = {"dataset_path": "allenai/ai2_Arc", "dataset_name": "ARC-Easy"}
    for settings in (hub, files("https://example.org/quiz.jsonl"), files("hf://datasets/a/b.json")):
        with pytest.raises(UserError, match="are not on this machine") as caught:
            check(**settings)
        assert "download: true" in str(caught.value.hint)
        check(**settings, download=True)
    (own_cache / "allenai___ai2_arc").mkdir(parents=True)
    check(**hub)
