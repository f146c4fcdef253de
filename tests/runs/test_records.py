"""What a run's folder says is read strictly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from permllm.errors import UserError
from permllm.files import read_record, write_sealed
from permllm.results import LayerReport, Results, RunResult
from permllm.runs.records import Environment, Exported, State, read_results, write_results

REPORT = LayerReport("layers.0.up", "layers.0:up", (3, 4), "2:4", 0.7, 0.8, 0.5, 0.1)
RESULTS = Results(
    "study",
    "runs/study",
    (RunResult("lcp", {"perplexity": math.inf}, 1.5, 7, {"masked": "x"}, (REPORT,), {"a": [1]}),),
)


def test_results_come_back(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_results(path, RESULTS)
    assert read_results(path) == RESULTS


def test_a_changed_digit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_results(path, RESULTS)
    path.write_text(path.read_text().replace("1.5", "1.6"))
    for older in (False, True):
        with pytest.raises(UserError, match="damaged: it is not what was written") as caught:
            read_results(path, older=older)
        assert caught.value.file == str(path)


def test_results_of_a_version_without_hashes_are_read_where_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULTS.to_dict()))
    assert read_results(path, older=True) == RESULTS
    with pytest.raises(UserError, match="damaged"):
        read_results(path)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"pipeline": "a", "out": "b", "runs": []},
        {"pipeline": "a", "out": "b", "runs": None},
        {"pipeline": "a", "out": "b", "runs": [3]},
        {"pipeline": "a", "out": "b", "runs": [{"label": 3}]},
        {"pipeline": 1, "out": "b", "runs": [{"label": "a"}]},
        RESULTS.to_dict() | {"out": None},
    ],
)
def test_another_form_is_refused_though_sealed(tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "result.json"
    write_sealed(path, data)
    with pytest.raises(UserError, match="damaged"):
        read_results(path)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", "[" * 10**5, '{"a": 1, "a": 1}'])
@pytest.mark.parametrize("cls", [Results, State, Environment, Exported])
def test_what_is_no_record(tmp_path: Path, text: str, cls: type) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_record(path, cls)
    assert caught.value.file == str(path)


def test_other_types_are_named_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    write_sealed(path, {"plugin_files": {"a.py": 3}, "more": True})
    with pytest.raises(UserError, match=r"damaged: plugin_files\[...\]: expected 'str', got 'int'"):
        read_record(path, Environment)
