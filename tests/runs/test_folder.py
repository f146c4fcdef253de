"""Names of folders: each run has its own, whatever the labels are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from permllm.runs.folder import unique_slugs


@given(st.lists(st.text("ab-2! ", max_size=4), max_size=8))
def test_no_two_labels_share_a_folder(labels: list[str]) -> None:
    names = unique_slugs(labels)
    assert len(names) == len(labels)
    assert len(set(names)) == len(names)
    assert all(name and not set(name) & set("! /") for name in names)
