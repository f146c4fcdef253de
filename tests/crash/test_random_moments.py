"""A longer study that is killed at random moments, while others export from it and make room."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from permllm.files import listing

SHARE = os.environ.get("PERMLLM_CRASH")

KILLS = 50 if SHARE == "full" else 4
"""Moments that are tried."""

SEED = 20_261_129

LONGER = (
    "--set",
    "matrix={layers.metric: [magnitude, wanda], layers.pruner: [mask, sparsegpt]}",
)

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not Path("/proc/self/fd").exists(), reason="for Linux"
)


def test_any_moment(studies: Any) -> None:
    chance = random.Random(SEED)
    began = time.perf_counter()
    expected = studies.outcome("longer", *LONGER)
    lasts = time.perf_counter() - began
    runs = (path.parent for path in (studies.folder / "longer").glob("out/runs/*/exports"))
    exports = {run.name: listing(run / "exports/masked") for run in runs}
    kills, number, wrong = 0, 0, []
    while kills < KILLS:
        number += 1
        place = studies.new(f"random-{number}")
        more: tuple[str, ...] = LONGER
        while kills < KILLS:
            called = studies.forks.start(*studies.words(place, *more), sketch=True)
            others = start_others(studies, place, chance)
            time.sleep(chance.uniform(0.0, 0.7 * lasts))
            for other in others:
                # It may have ended by now.
                wrong += [other.printed] if other.kill() not in (-9, 0, 2) else []
            ended = called.kill()
            kills += 1
            wrong += [called.printed] if ended not in (-9, 0) else []
            if ended == 0:
                break
            # Before its folder is claimed there is nothing to go on with.
            there = (place / "out/pipeline.yaml").exists()
            more = (*LONGER, "--resume") if there else LONGER
        done = studies.forks.call(*studies.words(place, *LONGER, "--resume"), sketch=True)
        assert done.code == 0, done.printed
        wrong += [line for line in studies.wrong(place, expected) if not of_room(line)]
        for export in (place / "exported").glob("*/model"):
            whole = exports[export.parent.name.partition("_")[0]]
            wrong += [] if listing(export) == whole else [f"{export} is not whole"]
        shutil.rmtree(place)
    print(f"{kills} kills in {number} studies of {lasts:.1f} s")
    assert not wrong, "\n".join(wrong)


def start_others(studies: Any, place: Path, chance: random.Random) -> list[Any]:
    """Somebody who makes room in the cache, and somebody who exports what is finished."""
    others = []
    if (place / "cache/CACHEDIR.TAG").exists():
        limit = str(chance.choice([0, 0.0001]))
        others.append(studies.forks.start("cache", "prune", place / "cache", "--limit", limit))
    finished = [path.parent for path in place.glob("out/runs/*/result.json")]
    pruned = sorted(path for path in finished if path.name != "dense")
    if pruned:
        run = chance.choice(pruned)
        to = place / "exported" / f"{run.name}_{chance.randrange(10**6)}" / "model"
        others.append(studies.forks.start("export", run, "--format", "masked", "--to", to))
    return others


def of_room(line: str) -> bool:
    """Whether it says that entries are missing in the cache, where somebody made room."""
    return line.startswith("cache: ") and line.endswith("too many []")
