"""Studies with kills and resumes, one after the other for hours: does anything grow?

    python tests/crash/soak.py --minutes 5 --csv soak.csv --png soak.png

A round is a study in a new folder that is killed at random moments and resumed to its end, room
made in the cache that all share, and one run within a process that lives as long as all of it.
What is measured after each goes to the CSV file. The exit code is 1 where a study does not end
well, or where a line fitted to the second half of a measure rises by more than is tolerated.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click

sys.path.append(str(Path(__file__).parents[1] / "forks"))

# The folder of this script is the first on its path.
from conftest import PIPELINE
from forks import Forks

from permllm.testing.models import save_tiny

KEPT = 3
"""Folders of the last studies that stay."""

CACHE_BYTES = 2_000_000
"""The limit of the cache: a few rounds fill it."""

VARIANTS = ("layers.metric=magnitude", "layers.metric=wanda", "layers.metric=ria", "pattern=1:4")
"""What studies differ in, so that some find in the cache what they need, and some do not."""

LEFT = ("**/.permllm-*.partial", "**/.owner.json", "**/.artifact.uploading.*")
"""What nobody should have left when a round has ended."""

FEWEST = 10
"""Rounds whose second half says something: as many folders as stay are there by then."""

WORKER = """\
import json, os, sys
import psutil
from permllm.api import run
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    order = json.loads(line)
    run(order["file"], order["settings"], out=order["out"], cache=order["cache"])
    me = psutil.Process()
    found = {"rss": me.memory_info().rss, "files": me.num_fds(), "threads": me.num_threads()}
    print(json.dumps(found), file=answers, flush=True)
"""
"""The process that lives long."""


@attrs.frozen
class Round:
    """What was measured after a round; bytes, seconds and counts.

    Attributes:
        kills: of its study, and of the ``cache prune`` beside.
        rss, files, threads: of the process that lives long.
        cache, disk: of the cache, and of the folders that are kept.
        store: of MLflow's file, which grows with every study.
        leftovers: files that should have gone.
    """

    number: int
    seconds: float
    kills: int
    rss: int
    files: int
    threads: int
    cache: int
    disk: int
    store: int
    leftovers: int


TOLERATED = {"rss": 0.05, "files": 0.05, "threads": 0.05, "cache": 0.25, "disk": 0.10}
"""By how much of its mean a measure may rise over the second half."""


def rise(values: list[float]) -> float:
    """How much of its mean a measure rises by, on a line through it; 0 where that is chance."""
    import numpy as np

    at = np.arange(len(values), dtype=float)
    (slope, _), covariance = np.polyfit(at, values, 1, cov=True)
    if slope <= 2 * float(np.sqrt(covariance[0, 0])):
        return 0.0
    return float(slope * (len(values) - 1) / max(1e-9, float(np.mean(values))))


def grown(rounds: list[Round]) -> list[str]:
    """What grows, in words."""
    half = rounds[len(rounds) // 2 :]
    found = []
    for name, tolerated in TOLERATED.items():
        values = [float(getattr(one, name)) for one in half]
        rises = rise(values)
        # A thread that is about to end is no growth: such counts rise by one at least.
        counted = name in ("files", "threads")
        if rises > tolerated and (not counted or rises * sum(values) / len(values) >= 1):
            found.append(f"{name} rises by {rises:.1%} in {len(half)} rounds")
    if rounds[-1].cache > CACHE_BYTES * 1.5:
        found.append(f"the cache takes {rounds[-1].cache} bytes")
    found += [f"round {one.number} left {one.leftovers}" for one in rounds if one.leftovers]
    return found


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder, each once."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[status.st_ino] = status.st_size
    return sum(found.values())


class Soak:
    """Does rounds in a folder."""

    def __init__(self, data: Path, seed: int) -> None:
        self.data, self.chance = data, random.Random(seed)
        save_tiny("llama", data / "model")
        (data / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
        (data / "tiny.yaml").write_text(PIPELINE)
        self.forks = Forks(data, ["run", "tiny.yaml", "--out", "warm/out", "--set", "track={}"])
        self.worker = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(data / "worker.err").open("w"),
            cwd=data,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )

    def rounds(self, seconds: float) -> Iterator[Round]:
        """Rounds until the time is over."""
        ends = time.monotonic() + seconds
        number = 0
        while time.monotonic() < ends:
            number += 1
            yield self.round(number)

    def round(self, number: int) -> Round:
        """One round."""
        began = time.monotonic()
        variant = self.chance.choice(VARIANTS)
        out = self.data / "runs" / f"study-{number:05d}"
        kills = self.study(out, variant)
        order = {
            "file": str(self.data / "tiny.yaml"),
            "settings": [self.chance.choice(VARIANTS)],
            "out": str(self.data / "inside/out"),
            "cache": str(self.data / "cache"),
        }
        found = self.ask(order)
        shutil.rmtree(self.data / "inside/out")
        for old in sorted((self.data / "runs").glob("study-*"))[:-KEPT]:
            shutil.rmtree(old)
        for log in self.data.glob("*.log"):
            if log.name != "server.log":
                log.unlink()
        return Round(
            number=number,
            seconds=round(time.monotonic() - began, 2),
            kills=kills,
            **found,
            cache=size_of(self.data / "cache"),
            disk=sum(size_of(kept) for kept in (self.data / "runs").glob("study-*")),
            store=(self.data / "runs/mlflow.db").stat().st_size,
            leftovers=sum(len(list(self.data.glob(pattern))) for pattern in LEFT),
        )

    def study(self, out: Path, variant: str) -> int:
        """A study with kills, to its end; how many."""
        limit = str(CACHE_BYTES / 1e9)
        shared = ["--cache", str(self.data / "cache"), "--cache-limit", limit]
        words = ["run", "tiny.yaml", "--set", variant, "--out", str(out), *shared]
        kills = 0
        for _ in range(self.chance.randrange(4)):
            resume = ["--resume"] if (out / "pipeline.yaml").exists() else []
            called = self.forks.start(*words, *resume, sketch=True)
            time.sleep(self.chance.uniform(0.0, 4.0))
            if self.chance.random() < 0.3 and (self.data / "cache/CACHEDIR.TAG").exists():
                prune = self.forks.start("cache", "prune", self.data / "cache")
                time.sleep(self.chance.uniform(0.0, 0.1))
                kills += prune.kill() == -9
            kills += called.kill() == -9
        done = self.forks.call(*words, "--resume", sketch=True)
        if done.code:
            raise click.ClickException(done.printed)
        pruned = self.forks.call("cache", "prune", self.data / "cache", "--limit", limit)
        verified = self.forks.call("cache", "verify", self.data / "cache")
        if pruned.code or verified.code:
            raise click.ClickException(pruned.printed + verified.printed)
        return kills

    def ask(self, order: dict[str, Any]) -> dict[str, int]:
        """Have the process that lives long do a run; what it takes then."""
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        self.worker.stdin.write(json.dumps(order) + "\n")
        self.worker.stdin.flush()
        answer = self.worker.stdout.readline()
        if not answer:
            raise click.ClickException("the process that does runs within itself has ended")
        found: dict[str, int] = json.loads(answer)
        return found

    def close(self) -> None:
        """End the processes."""
        self.forks.close()
        assert self.worker.stdin is not None
        self.worker.stdin.close()
        self.worker.wait()


def draw(rounds: list[Round], path: Path) -> None:
    """The measures over the rounds, as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = [*TOLERATED, "store", "leftovers", "seconds"]
    figure, axes = pyplot.subplots(len(names), sharex=True, figsize=(7, 12))
    for name, axis in zip(names, axes, strict=True):
        axis.plot([one.number for one in rounds], [getattr(one, name) for one in rounds])
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("round")
    figure.tight_layout()
    figure.savefig(path)


@click.command()
@click.option("--hours", type=float, default=0.0, help="How long.")
@click.option("--minutes", type=float, default=0.0, help="How long, besides hours.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of kills and studies.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder to work in; a new one.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Where the rounds go.")
@click.option("--png", "png_path", type=click.Path(path_type=Path), help="A picture of them.")
def main(
    hours: float,
    minutes: float,
    seed: int,
    data: Path | None,
    csv_path: Path | None,
    png_path: Path | None,
) -> None:
    """Run studies with kills for a while, and say whether anything grows."""
    if data is not None:
        data.mkdir(parents=True)
    work = (data or Path(tempfile.mkdtemp(prefix="permllm-soak-"))).resolve()
    (work / "runs").mkdir()
    rounds: list[Round] = []
    soak = Soak(work, seed)
    try:
        with (csv_path or work / "soak.csv").open("w", newline="", encoding="utf-8") as file:
            lines = csv.DictWriter(file, [field.name for field in attrs.fields(Round)])
            lines.writeheader()
            for one in soak.rounds(3600 * hours + 60 * minutes):
                rounds.append(one)
                lines.writerow(attrs.asdict(one))
                file.flush()
                click.echo(" ".join(f"{k}={v}" for k, v in attrs.asdict(one).items()))
    finally:
        soak.close()
        if data is None:
            shutil.rmtree(work)
    if png_path is not None:
        draw(rounds, png_path)
    if len(rounds) < FEWEST:
        raise click.ClickException(f"{len(rounds)} rounds say nothing: let it run longer")
    kills = sum(one.kills for one in rounds)
    if found := grown(rounds):
        raise click.ClickException(f"{len(rounds)} rounds, {kills} kills: " + "; ".join(found))
    click.echo(f"{len(rounds)} rounds, {kills} kills: nothing grows")


if __name__ == "__main__":
    main()
