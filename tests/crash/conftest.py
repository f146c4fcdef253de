"""A small study that is killed and resumed, and what must be the same after that.

A share of the kills is done by default, and all of them with ``PERMLLM_CRASH=full``
(``tox run -e crash``); a number says that every so-manieth is to be done.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from forks import Forks

from permllm.files import listing, read_sealed
from permllm.runs.windows import load_window, read_window_record

PIPELINE = """\
permllm: 1
name: tiny
model: {source: directory, path: model}
calibration: {dataset: {name: text, path: text.txt}, sequences: 4, length: 16, held_out: 2}
pattern: "2:4"
layers:
  window: 1
  permutation: {name: lcp, steps: 2, batch: 2, block: 8, start: {name: cp, rounds: 2, steps: 2}}
evaluate:
  - {name: perplexity, dataset: {name: text, path: text.txt}, length: 16, max_tokens: 128}
export: [masked, permuted]
track: {mlflow: {run_name: study}}
"""

OF_TIME = ("seconds", "peak_memory_bytes")
"""What may differ from one attempt to the next."""


@attrs.frozen(eq=False)
class Studies:
    """Folders of studies beside a model, each with ``out``, ``cache`` and the store beside.

    Attributes:
        folder: where they are.
        forks: calls ``permllm`` there.
    """

    folder: Path
    forks: Forks

    def new(self, name: str) -> Path:
        """The folder of a study that has not begun, with the tables of an empty store."""
        place = self.folder / name
        place.mkdir()
        shutil.copy(self.folder / "empty.db", place / "mlflow.db")
        return place

    def words(self, place: Path, *more: str) -> list[str]:
        """The command line of a study."""
        where = ["--out", str(place / "out"), "--cache", str(place / "cache")]
        return ["run", "tiny.yaml", *where, *more]

    def outcome(self, name: str, *more: str) -> dict[str, Any]:
        """What an undisturbed study ends with."""
        place = self.folder / name
        if not place.exists():
            self.new(name)
            called = self.forks.call(*self.words(place, *more), sketch=True)
            assert called.code == 0, called.printed
        return outcome_of(place)

    def wrong(self, place: Path, expected: dict[str, Any]) -> list[str]:
        """What is not as it should be in the folder of a study that has ended well."""
        verified = self.forks.call("cache", "verify", place / "cache")
        wrong = [] if verified.code == 0 else [verified.printed]
        found = outcome_of(place)
        return wrong + [
            f"{what}: {_difference(expected[what], found[what])}"
            for what in expected
            if found[what] != expected[what]
        ]


def outcome_of(place: Path) -> dict[str, Any]:
    """What must be the same however a study came to its end; all of it is checked, too."""
    out = place / "out"
    results = read_sealed(out / "results.json")
    records = [out / "environment.json", *out.glob("runs/*/*.json")]
    for path in records:
        read_sealed(path)
    for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines():
        # One that a killed process has left unfinished is a line of its own.
        assert line.startswith("{")
    windows = sorted(out.glob("runs/*/windows/*.safetensors"))
    for path in windows:
        load_window(path)
    return {
        "figures": [
            [run["label"], run["figures"], run["layers"], run["exports"], run["error"]]
            for run in results["runs"]
        ],
        "exports": {k: v for k, v in listing(out).items() if "/exports/" in k},
        "windows": {
            str(path.relative_to(out)): read_window_record(path).tensors for path in windows
        },
        "files": names_in(out),
        "cache": {name.partition(".")[0] for name in names_in(place / "cache")},
        "record": recorded(place),
    }


def names_in(folder: Path) -> set[str]:
    """Files and folders at any depth, but the file of the lock, which stays."""
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name != ".lock"
    }


def recorded(place: Path) -> dict[str, Any]:
    """What a study's store says, by the name of the run."""
    with sqlite3.connect(place / "mlflow.db") as store:
        rows = store.execute("select run_uuid, name, status, artifact_uri from runs").fetchall()
        record: dict[str, Any] = {"runs": sorted((name, status) for _, name, status, _ in rows)}
        for run_id, name, _, artifacts in rows:
            mine = (run_id,)
            record[name] = {
                "metrics": {
                    row
                    for row in store.execute(
                        "select key, step, value from metrics where run_uuid = ?", mine
                    )
                    if row[0] not in OF_TIME
                },
                "params": dict(
                    store.execute("select key, value from params where run_uuid = ?", mine)
                ),
                "tags": {
                    row[0] for row in store.execute("select key from tags where run_uuid = ?", mine)
                },
                "artifacts": names_in(Path(artifacts.removeprefix("file://"))),
            }
    store.close()
    kept = list((place / "mlartifacts").rglob("results.json"))
    record["up to date"] = [
        path.read_bytes() == (place / "out/results.json").read_bytes() for path in kept
    ]
    return record


def _difference(expected: Any, found: Any) -> str:
    """Where two values differ, in a line."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return "; ".join(
            f"{key}: {_difference(expected.get(key), found.get(key))}"
            for key in sorted({*expected, *found}, key=str)
            if expected.get(key) != found.get(key)
        )
    if isinstance(expected, set) and isinstance(found, set):
        return f"missing {sorted(expected - found)[:5]}, too many {sorted(found - expected)[:5]}"
    return f"{str(found)[:300]} instead of {str(expected)[:300]}"


@pytest.fixture(scope="session")
def studies(
    tmp_path_factory: pytest.TempPathFactory, tiny_project: Callable[..., Path], forks: Forks
) -> Studies:
    folder = tiny_project(tmp_path_factory.mktemp("crash").resolve(), PIPELINE)
    forks = forks.at(folder)
    # To make the tables takes longer than the study.
    first = forks.call(
        "run",
        "tiny.yaml",
        "--out",
        "first/out",
        "--set",
        "layers.permutation=none",
        "--set",
        "export=[]",
        sketch=True,
    )
    assert first.code == 0, first.printed
    with sqlite3.connect(folder / "first/mlflow.db") as store:
        store.execute("pragma foreign_keys = off")
        for table in ("metrics", "latest_metrics", "params", "tags", "runs", "experiment_tags"):
            store.execute(f"delete from {table}")
        store.execute("delete from experiments where experiment_id > 0")
    store.close()
    shutil.copy(folder / "first/mlflow.db", folder / "empty.db")
    return Studies(folder, forks)
