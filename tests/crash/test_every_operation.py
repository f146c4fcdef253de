"""A study that is killed at a file operation, whichever, goes on to the same end.

What counts as one says ``server.py``.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from permllm.files import listing

SHARE = os.environ.get("PERMLLM_CRASH")

RUN_SHARE = 1 if SHARE == "full" else int(SHARE or 29)
EXPORT_SHARE = 1 if SHARE == "full" else int(SHARE or 7)
"""Every so-manieth operation is tried."""

STORES = 12 if SHARE == "full" else 1
"""Kills within the making of a store, which takes longer than the rest of the run."""

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not Path("/proc/self/fd").exists(), reason="for Linux"
)


def operations(studies: Any, words: list[str], watched: list[Path], **order: Any) -> list[str]:
    """The file operations of a call that nothing disturbs."""
    path = studies.folder / "operations.json"
    counted = [str(folder) for folder in watched]
    called = studies.forks.call(*words, watched=counted, operations=str(path), **order)
    assert called.code == 0, called.printed
    seen: list[str] = json.loads(path.read_text())
    return seen


def test_a_run(studies: Any) -> None:
    expected = studies.outcome("undisturbed")
    place = studies.new("counted")
    seen = operations(studies, studies.words(place), [place], sketch=True)
    assert {one.partition(" ")[0] for one in seen} >= {
        "open", "fsync", "os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove", "sql",
    }  # fmt: skip
    assert not studies.wrong(place, expected)
    failures = {}
    for number in range(0, len(seen), RUN_SHARE):
        place = studies.new(f"killed-{number}")
        order = {"watched": [str(place)], "kill_at": number, "sketch": True}
        killed = studies.forks.call(*studies.words(place), **order)
        assert killed.code == -9, killed.printed
        resumed = studies.forks.call(*studies.words(place, "--resume"), sketch=True)
        wrong = studies.wrong(place, expected) if resumed.code == 0 else [resumed.printed]
        if wrong:
            failures[f"{number}: {seen[number]}"] = wrong
            # All of them take an hour.
            print(number, seen[number], *wrong, sep="\n  ", flush=True)
        shutil.rmtree(place)
    print(f"{len(range(0, len(seen), RUN_SHARE))} of {len(seen)} operations of a run")
    assert not failures, json.dumps(failures, indent=1)


def test_a_run_that_makes_the_store(studies: Any) -> None:
    """MLflow makes a hundred changes one by one, and cannot go on in their midst."""
    expected = studies.outcome("undisturbed")
    place = studies.new("made")
    (place / "mlflow.db").unlink()
    seen = operations(studies, studies.words(place), [place], sketch=True)
    made = [number for number, one in enumerate(seen) if one.startswith("sql ")]
    made = [number for number in made if ".partial" in seen[number]]
    assert len(made) > 100
    failures = {}
    for number in made[1 :: len(made) // STORES]:
        place = studies.new(f"making-{number}")
        (place / "mlflow.db").unlink()
        killed = studies.forks.call(
            *studies.words(place), watched=[str(place)], kill_at=number, sketch=True
        )
        assert killed.code == -9, killed.printed
        resumed = studies.forks.call(*studies.words(place, "--resume"), sketch=True)
        wrong = studies.wrong(place, expected) if resumed.code == 0 else [resumed.printed]
        wrong += [f"left: {path}" for path in place.glob(".permllm-*")]
        if wrong:
            failures[f"{number}: {seen[number]}"] = wrong
        shutil.rmtree(place)
    assert not failures, json.dumps(failures, indent=1)


def test_an_export(studies: Any) -> None:
    studies.outcome("undisturbed")
    run = studies.folder / "undisturbed/out/runs/lcp"
    top = studies.folder / "exports"
    top.mkdir()
    words = ["export", str(run), "--format", "sparse", "--to", str(top / "whole/model")]
    seen = operations(studies, words, [top])
    expected = listing(top / "whole/model")
    assert expected
    failures = {}
    for number in range(0, len(seen), EXPORT_SHARE):
        to = top / f"{number}/model"
        again = [*words[:-1], str(to)]
        killed = studies.forks.call(*again, watched=[str(top)], kill_at=number)
        assert killed.code == -9, killed.printed
        there = to.exists()
        if there and listing(to) != expected:
            failures[f"{number}: {seen[number]}"] = "neither whole nor absent"
        after = studies.forks.call(*again)
        if there != (after.code == 2) or listing(to) != expected:
            failures[f"{number}: {seen[number]}"] = after.printed
        elif left := {path.name for path in to.parent.iterdir()} - {"model"}:
            failures[f"{number}: {seen[number]}"] = f"left: {left}"
    print(f"{len(range(0, len(seen), EXPORT_SHARE))} of {len(seen)} operations of an export")
    assert not failures, json.dumps(failures, indent=1)
