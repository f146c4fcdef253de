"""Two processes at once: on one folder, one cache, one place of an export, in one second."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from permllm.files import listing

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not Path("/proc/self/fd").exists(), reason="for Linux"
)


def test_two_resumes_of_one_folder(studies: Any) -> None:
    expected = studies.outcome("undisturbed")
    place = studies.new("twice")
    killed = studies.forks.call(
        *studies.words(place), watched=[str(place)], kill_at=140, sketch=True
    )
    assert killed.code == -9
    two = [studies.forks.start(*studies.words(place, "--resume"), sketch=True) for _ in range(2)]
    assert sorted(one.wait() for one in two) == [0, 2]
    winner, loser = sorted(two, key=lambda one: one.code)
    assert f"in use by process {winner.pid} on " in loser.printed
    assert studies.wrong(place, expected) == []


def test_two_exports_to_one_place(studies: Any) -> None:
    studies.outcome("undisturbed")
    run, to = studies.folder / "undisturbed/out/runs/lcp", studies.folder / "one-place/model"
    words = ["export", str(run), "--format", "masked", "--to", str(to)]
    two = [studies.forks.start(*words) for _ in range(2)]
    assert sorted(one.wait() for one in two) == [0, 2]
    loser = max(two, key=lambda one: one.code)
    assert "is there already" in loser.printed
    assert listing(to) == listing(run / "exports/masked")
    assert [path.name for path in to.parent.iterdir()] == ["model"]


def test_two_starts_in_one_second(studies: Any) -> None:
    """Without --out the folder's name is the second."""
    expected = studies.outcome("undisturbed")
    runs = studies.folder / "runs"
    runs.mkdir()
    shutil.copy(studies.folder / "empty.db", runs / "mlflow.db")
    # Early in a second, so that both start in it.
    time.sleep(1 - time.time() % 1)
    two = [studies.forks.start("run", "tiny.yaml", sketch=True) for _ in range(2)]
    assert [one.wait() for one in two] == [0, 0], two[0].printed + two[1].printed
    outs = sorted(path for path in runs.glob("tiny-*"))
    assert len(outs) == 2
    assert re.fullmatch(r"tiny-\d{8}-\d{6}", outs[0].name)
    for out in outs:
        found = listing(out)
        exports = {name: one for name, one in found.items() if "/exports/" in name}
        assert exports == expected["exports"]


def test_three_runs_with_one_cache(studies: Any) -> None:
    expected = studies.outcome("undisturbed")
    places = [studies.new(f"shared-{number}") for number in range(3)]
    cache = places[0] / "cache"
    for place in places[1:]:
        (place / "cache").symlink_to(cache)
    three = [studies.forks.start(*studies.words(place), sketch=True) for place in places]
    assert [one.wait() for one in three] == [0, 0, 0], "".join(one.printed for one in three)
    for place in places:
        assert studies.wrong(place, expected) == []


def test_room_is_made_beside_a_live_run(studies: Any) -> None:
    expected = studies.outcome("undisturbed")
    place = studies.new("beside")
    run = studies.forks.start(*studies.words(place), sketch=True)
    pruned = 0
    while not (place / "out/results.json").exists() and run.is_running():
        if (place / "cache/CACHEDIR.TAG").exists():
            prune = studies.forks.call("cache", "prune", place / "cache")
            assert prune.code == 0, prune.printed
            pruned += "removed 0 entries" not in prune.printed
    assert run.wait() == 0, run.printed
    assert pruned
    assert "warning" not in run.printed
    wrong = studies.wrong(place, expected)
    assert [line for line in wrong if not line.startswith("cache: missing")] == []
