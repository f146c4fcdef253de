"""Names of folders: each run has its own, whatever the labels are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.errors import UserError
from permllm.pipeline.reading import load_plain_yaml
from permllm.runs.folder import (
    LONGEST_SLUG,
    claim,
    latest_unfinished,
    new_folder,
    slug,
    unique_slugs,
)


def begin(runs: Path, folder: str, name: str, *, finished: bool = False) -> Path:
    path = runs / folder
    path.mkdir(parents=True)
    (path / "pipeline.yaml").write_text(f"permllm: 1\nname: {name}\n")
    if finished:
        (path / "results.json").write_text("{}")
    return path


def test_a_run_goes_on_in_the_latest_folder_of_its_own_pipeline(tmp_path: Path) -> None:
    first = begin(tmp_path, "lcp-20261128-101500", "lcp")
    begin(tmp_path, "lcp-long-20261129-101500", "lcp-long")
    begin(tmp_path, "lcp-20261129-101500", "lcp", finished=True)
    begin(tmp_path, "lcp-20261129-101600", "lcp!")
    (tmp_path / "lcp-20261129-101700").mkdir()
    (begin(tmp_path, "lcp-20261129-101800", "lcp") / "pipeline.yaml").write_text("name: [")
    assert latest_unfinished("lcp", tmp_path) == first
    second = begin(tmp_path, "lcp-20261128-101500-2", "lcp")
    assert latest_unfinished("lcp", tmp_path) == second
    tenth = begin(tmp_path, "lcp-20261128-101500-10", "lcp")
    assert latest_unfinished("lcp", tmp_path) == tenth
    begin(tmp_path, "lcp-20261127-101500-11", "lcp")
    assert latest_unfinished("lcp", tmp_path) == tenth
    with pytest.raises(UserError, match="no unfinished run of 'long'"):
        latest_unfinished("long", tmp_path)


def test_a_new_folder_is_found_again(tmp_path: Path) -> None:
    path = new_folder("My study, 1st", tmp_path)
    begin(tmp_path, path.name, "My study, 1st")
    assert latest_unfinished("My study, 1st", tmp_path) == path


@given(st.lists(st.text("ab-2! .", max_size=4) | st.text("ab", min_size=100), max_size=8))
def test_no_two_labels_share_a_folder(labels: list[str]) -> None:
    names = unique_slugs(labels)
    assert len(names) == len(labels)
    assert len(set(names)) == len(names)
    assert all(name.strip(".") and not set(name) & set("! /") for name in names)
    assert all(len(name) <= LONGEST_SLUG + 2 for name in names)


def test_long_labels_keep_their_beginning_and_are_told_apart_by_their_end() -> None:
    first, second = (slug(f"lcp({'passes=4, ' * 50}{end})") for end in ("a", "b"))
    assert first != second
    assert first.startswith("lcp-passes-4-passes-4-")
    assert len(first) == LONGEST_SLUG
    assert slug("a" * LONGEST_SLUG) == "a" * LONGEST_SLUG


def test_a_study_that_goes_on_may_be_done_elsewhere(tmp_path: Path) -> None:
    before: dict[str, Any] = {"name": "a", "pattern": "2:4", "resources": {"gpus": None}}
    now = before | {"resources": {"gpus": 2}, "matrix": {"seed": [1, 2]}}
    claim(tmp_path, before, resume=False)
    with pytest.raises(UserError, match=r"resources\.gpus"):
        claim(tmp_path, now, resume=False)
    claim(tmp_path, now, resume=True)
    assert load_plain_yaml(tmp_path / "pipeline.yaml") == now
    with pytest.raises(UserError, match="pattern"):
        claim(tmp_path, now | {"pattern": "4:8"}, resume=True)
