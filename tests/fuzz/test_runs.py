"""Folders of runs: read, compared and gone on with, whatever has become of their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from permllm.comparing.table import markdown_of, tables_of
from permllm.files import read_record
from permllm.observers.mlflow import IDS, Mlflow, Recorder
from permllm.pipeline.reading import dump_yaml, load_plain_yaml
from permllm.report.across import compare, to_csv, to_json
from permllm.report.history import training_history, window_starts
from permllm.results import RunResult
from permllm.runner.identity import RunIdentity, believed
from permllm.runs import folder as folders
from permllm.runs.events import read_events
from permllm.runs.lock import OWNER, owned
from permllm.runs.reading import read_folder
from permllm.runs.records import State, read_results
from permllm.runs.windows import load_window, read_window_record

FILES = ("results.json", "environment.json", "runs/none/result.json", "runs/none/state.json",
         "runs/none/exports.json", "pipeline.yaml", "events.jsonl", IDS, OWNER)  # fmt: skip


class Store:
    """As much of a tracking store as the ids need."""

    uri = "sqlite:///a.db"


@pytest.fixture
def out(project: Path, tmp_path: Path) -> Path:
    """A copy of a run's folder, with the ids of a tracking store and a dead owner."""
    folder = Path(shutil.copytree(project / "out", tmp_path / "out"))
    ids = {"uri": Store.uri, "runs": {"": "a" * 32, "none": "b" * 32}}
    (folder / IDS).write_text(json.dumps(ids))
    with owned(folder, lambda message: None):
        owner = (folder / OWNER).read_bytes()
    (folder / OWNER).write_bytes(owner)
    return folder


def changed(change: Any, name: str, kept: bytes, path: Path) -> bytes:
    """The bytes of a changed file of a run."""
    if not change.structure:
        return change.raw(kept)
    if name.endswith(".yaml"):
        return change.text(load_plain_yaml(path))
    if name.endswith(".jsonl"):
        events = change.data([json.loads(line) for line in kept.splitlines()], seal=False)
        events = events if isinstance(events, list) else [events]
        return change.raw(b"\n".join(change.spelled(event) for event in events))
    return change.text(json.loads(kept), seal=name != IDS)


def show(out: Path) -> None:
    """All that `permllm compare` prints."""
    comparison = compare([str(out)])
    to_csv(comparison.rows)
    json.dumps(to_json(comparison))
    markdown_of(comparison.rows)
    console = Console(file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    with console.file:
        for table in tables_of(comparison.rows, console):
            console.print(table)


@pytest.mark.parametrize("name", FILES)
def test_files_of_runs(fuzz: Any, out: Path, attempt: Callable[..., None], name: str) -> None:
    if name in ("runs/none/result.json", "events.jsonl"):
        (out / "results.json").unlink()
    path = out / name
    kept = path.read_bytes()
    run = out / "runs" / "none"
    state = read_record(run / "state.json", State)
    whole = read_results(run / "result.json").runs[0]
    identity = RunIdentity(state.key, state.parts, state.threads)
    pipeline = load_plain_yaml(out / "pipeline.yaml")
    figures = [one.figures for one in read_folder(str(out)).results.runs]

    def trust() -> RunResult | None:
        return believed(run, identity, lambda message: None)

    def resume() -> None:
        result = trust()
        if result is not None and not change_of[-1].is_resealed:
            assert result == whole
        for aside in out.glob("runs/*.before-*"):
            aside.rename(run)
        for aside in run.glob("exports/*.before-*"):
            aside.rename(aside.with_name(aside.name.partition(".before-")[0]))

    def remember() -> None:
        recorder = Recorder(Mlflow(), out, lambda message: None, Store())  # type: ignore[arg-type]
        recorder._remember()
        assert all(isinstance(one, str) for pair in recorder.ids.items() for one in pair)
        recorder._origin()

    def own() -> None:
        with owned(out, lambda message: None):
            pass

    def same_figures() -> None:
        found = read_folder(str(out)).results.runs
        if not change_of[-1].is_resealed and json.loads(path.read_bytes()).get("sha256"):
            assert [one.figures for one in found] == figures

    change_of: list[Any] = []

    def read(change: Any) -> None:
        change_of.append(change)
        path.write_bytes(changed(change, name, kept, path))
        try:
            attempt(
                lambda: show(out),
                lambda: folders.began_with(out),
                lambda: folders.claim(out, pipeline, resume=True),
                lambda: training_history(read_events(out)),
                lambda: window_starts(read_events(out)),
                resume,
                remember,
                *([same_figures] if name.endswith("result.json") or name == "results.json" else []),
                *([own] if name == OWNER else []),
            )
        finally:
            path.write_bytes(kept)
            (out / "pipeline.yaml").write_text(
                dump_yaml(pipeline)
            ) if name != "pipeline.yaml" else 0

    fuzz(read, 250)


def test_windows(fuzz: Any, out: Path) -> None:
    path = out / "runs" / "lcp" / "windows" / "000.safetensors"
    kept, whole = path.read_bytes(), load_window(path)
    path.unlink()

    def read(change: Any) -> None:
        path.write_bytes(change.weights(kept, seal=True))
        read_window_record(path)
        load_window(path, weights=False)
        window = load_window(path)
        if change.is_resealed:
            return
        assert (window.reports, window.cost, window.key, window.threads) == (
            whole.reports, whole.cost, whole.key, whole.threads,
        )  # fmt: skip
        for mine, theirs in ((window.weights, whole.weights),
                             (window.permutations, whole.permutations),
                             (window.importance, whole.importance)):  # fmt: skip
            assert mine.keys() == theirs.keys()
            assert all(mine[key].equal(theirs[key]) for key in mine)

    fuzz(read, 2000)


def test_on_the_command_line(fuzz: Any, out: Path, say: Callable[..., str]) -> None:
    names = ("results.json", "environment.json", "pipeline.yaml")
    kept = {name: (out / name).read_bytes() for name in names}

    def read(change: Any) -> None:
        name = names[change.sample % len(names)]
        (out / name).write_bytes(changed(change, name, kept[name], out / name))
        try:
            for form in ((), ("--csv",), ("--markdown",), ("--json",)):
                say("compare", out, *form)
        finally:
            (out / name).write_bytes(kept[name])

    fuzz(read, 200, share=0.03)


def test_a_run_is_exported_as_it_is(
    fuzz: Any, out: Path, tmp_path: Path, say: Callable[..., str]
) -> None:
    names = ["runs/none/result.json", "environment.json", "pipeline.yaml",
             "runs/none/windows/000.safetensors", "runs/dense/result.json"]  # fmt: skip
    run = out / "runs" / "none"
    whole = (run / "exports" / "masked" / "model.safetensors").read_bytes()

    def read(change: Any) -> None:
        name = names[change.sample % len(names)]
        path, to = out / name, tmp_path / "to"
        kept = path.read_bytes()
        # Not into the file, which an entry of the cache may be, too.
        path.unlink()
        if name.endswith(".safetensors"):
            path.write_bytes(change.weights(kept, seal=True))
        else:
            (out / "kept").write_bytes(kept)
            path.write_bytes(changed(change, name, kept, out / "kept"))
        try:
            # A run that was changed so that it fits its hashes may break in the export.
            said = say("export", run, "--format", "masked", "--to", to, codes=(0, 1, 2))
            sealed = name != "pipeline.yaml" and not change.is_resealed
            if sealed and "error: " not in said:
                assert (to / "model.safetensors").read_bytes() == whole
        finally:
            path.unlink()
            path.write_bytes(kept)
            shutil.rmtree(to, ignore_errors=True)

    fuzz(read, 200, share=0.03)


def test_a_run_goes_on_with_the_same_figures(
    fuzz: Any, project: Path, out: Path, tmp_path: Path, say: Callable[..., str]
) -> None:
    names = [*FILES, "runs/lcp/result.json", "runs/lcp/state.json",
             "runs/lcp/windows/000.safetensors", "runs/dense/result.json"]  # fmt: skip
    figures = [one.figures for one in read_folder(str(out)).results.runs]

    def read(change: Any) -> None:
        name = names[change.sample % len(names)]
        again = Path(shutil.copytree(out, tmp_path / "again"))
        kept = (again / name).read_bytes()
        if name.endswith(".safetensors"):
            (again / name).unlink()
            (again / name).write_bytes(change.weights(kept, seal=True))
        else:
            (again / name).write_bytes(changed(change, name, kept, again / name))
        try:
            say("run", project / "tiny.yaml", "--resume", "--out", again, codes=(0, 1, 2))
            if (again / "results.json").exists() and not change.is_resealed:
                found = [one.figures for one in read_folder(str(again)).results.runs]
                assert found == figures
        finally:
            shutil.rmtree(again)

    fuzz(read, 80, share=0.03)
