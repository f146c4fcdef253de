"""Folders of runs are read back, finished or not, and chosen by their labels."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

from permllm.errors import UserError
from permllm.results import Results
from permllm.runs.folder import ENVIRONMENT, PIPELINE, RESULT, RESULTS
from permllm.runs.reading import read_folder, select, split


def keep(folder: Path, results: Results) -> Path:
    folder.mkdir()
    (folder / RESULTS).write_text(json.dumps(results.to_dict()))
    return folder


def test_a_folder_is_read_with_what_it_still_has(results, tmp_path: Path) -> None:
    folder = keep(tmp_path / "a", results())
    bare = read_folder(str(folder))
    assert (bare.results, bare.pipeline, bare.environment) == (results(), {}, {})
    (folder / PIPELINE).write_text('pattern: "2:4"\n')
    (folder / ENVIRONMENT).write_text('{"threads": 2}')
    whole = read_folder(str(folder))
    assert (whole.pipeline, whole.environment) == ({"pattern": "2:4"}, {"threads": 2})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (ENVIRONMENT, '{"versions": "new"}', "versions: expected 'object', got 'str'"),
        (ENVIRONMENT, '{"model_fingerprint": 7}', "model_fingerprint: expected 'str | null'"),
        (PIPELINE, "evaluate: [sparsity]", r"evaluate\[0\]: expected 'object', got 'str'"),
        (PIPELINE, "evaluate: 3", "evaluate: expected 'array | null', got 'int'"),
        (PIPELINE, "matrix: {repeat: often}", "matrix.repeat: expected 'int', got 'str'"),
    ],
)
def test_what_comparisons_rely_on_is_of_its_type(
    results, tmp_path: Path, name: str, text: str, message: str
) -> None:
    folder = keep(tmp_path / "a", results())
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_folder(str(folder))
    assert caught.value.file == str(folder / name)


@pytest.mark.parametrize("planned", [None, 3, "lcp", [["a"], {}, "lcp"]])
def test_a_damaged_plan_in_the_log_decides_no_more_than_it_says(
    results, tmp_path: Path, planned: object
) -> None:
    for run in results().runs:
        (tmp_path / "runs" / run.label).mkdir(parents=True)
        alone = attrs.evolve(results(), runs=(run,))
        (tmp_path / "runs" / run.label / RESULT).write_text(json.dumps(alone.to_dict()))
    event = {"event": "plan_started", "runs": planned}
    (tmp_path / "events.jsonl").write_text(json.dumps(event))
    labels = [run.label for run in read_folder(str(tmp_path)).results.runs]
    first = ["lcp", "cp"] if isinstance(planned, list) else ["cp", "lcp"]
    assert labels == ["dense", *first, "none"]


def test_an_unfinished_folder_comes_in_the_order_of_its_plan(results, tmp_path: Path) -> None:
    made = results()
    for number, run in enumerate(reversed(made.runs)):
        place = tmp_path / "runs" / str(number)
        place.mkdir(parents=True)
        alone = attrs.evolve(made, runs=(run,))
        (place / RESULT).write_text(json.dumps(alone.to_dict()))
    planned = {"event": "plan_started", "runs": ["lcp", "none", "cp"]}
    (tmp_path / "events.jsonl").write_text(json.dumps(planned) + "\n")
    read = read_folder(str(tmp_path)).results
    assert [run.label for run in read.runs] == ["dense", "lcp", "none", "cp"]


def test_the_folder_is_the_longest_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a:b"):
        Path(name).mkdir()
    assert split("a") == ("a", None)
    assert split("a:lcp") == ("a", "lcp")
    assert split("a:b") == ("a:b", None)
    assert split("a:b:2:4 cp") == ("a:b", "2:4 cp")
    with pytest.raises(UserError, match="there is no folder 'c'"):
        split("c:lcp")


def test_each_folder_is_chosen_once_and_in_its_own_order(
    results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        keep(Path(name), results())
    chosen = select(["b:lcp", "a", "./b:dense"])
    assert [[run.label for run in one.runs] for one in chosen] == [
        ["dense", "lcp"],
        ["dense", "none", "cp", "lcp"],
    ]
    assert [run.label for run in chosen[0].pruned] == ["lcp"]
    with pytest.raises(UserError, match="a has no run 'lpc'"):
        select(["a:lpc"])
