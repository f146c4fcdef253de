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
