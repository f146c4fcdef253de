"""The folder of a run whose circumstances changed is set aside, never removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch

from permllm.api import run_plan
from permllm.files import read_sealed, write_sealed
from permllm.hooks import hookimpl
from permllm.registry import Registry
from permllm.results import Results
from permllm.runner import identity
from permllm.runner.caching import keys
from permllm.runs.folder import finished_runs
from permllm.runs.plan import make_plan
from permllm.runs.reading import read_folder

TODAY = date.today().isoformat()


class Warnings:
    """What the user was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @hookimpl
    def permllm_warning(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def run(write_pipeline: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Results, str]]:
    """Runs a small study in one folder, as often as it is called; and what was said."""
    path = write_pipeline(layers={"permutation": "cp", "window": 1})

    def once(*, resume: bool = True) -> tuple[Results, str]:
        registry, warnings = Registry.load(), Warnings()
        registry.manager.register(warnings)
        plan = make_plan(path, registry, out=tmp_path / "out", resume=resume)
        return run_plan(plan, registry, resume=resume), "\n".join(warnings.said)

    return once


@pytest.fixture(autouse=True)
def any_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as a test sets, however few cores there are."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def change_state(run_folder: Path, **parts: object) -> None:
    """Let a run seem to have been begun under other circumstances."""
    state = read_sealed(run_folder / "state.json")
    state["parts"] |= parts
    state["key"] = keys.digest(state["parts"])
    write_sealed(run_folder / "state.json", state)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"libraries": {"torch": "2.4.0"}}, "torch 2.4.0 → "),
        ({"python": "3.9.1"}, "Python 3.9.1 → 3."),
        ({"code": "0"}, "the code of permllm changed"),
        ({"options": "0"}, "the run's options, plugins or text changed"),
    ],
    ids=["libraries", "python", "code", "options"],
)
def test_a_finished_run_is_kept_under_another_name(
    run: Callable[..., tuple[Results, str]],
    tmp_path: Path,
    parts: dict[str, object],
    said: str,
) -> None:
    run(resume=False)
    folder = tmp_path / "out/runs/cp"
    (folder / "notes.txt").write_text("mine")
    (folder / "exports/by-hand").mkdir()
    change_state(folder, **parts)
    _, told = run()
    aside = tmp_path / f"out/runs/cp.before-{TODAY}"
    assert (aside / "notes.txt").read_text() == "mine"
    assert (aside / "exports/by-hand").is_dir()
    assert (aside / "exports/masked/config.json").is_file()
    assert not (folder / "notes.txt").exists()
    assert (folder / "exports/masked/config.json").is_file()
    assert said in told
    assert str(aside) in told


def test_it_can_happen_twice_a_day(run: Callable[..., tuple[Results, str]], tmp_path: Path) -> None:
    run(resume=False)
    for number in range(2):
        (tmp_path / "out/runs/cp/notes.txt").write_text(str(number))
        change_state(tmp_path / "out/runs/cp", code=str(number))
        run()
    names = [f"cp.before-{TODAY}", f"cp.before-{TODAY}-2"]
    assert [(tmp_path / "out/runs" / name / "notes.txt").read_text() for name in names] == [
        "0",
        "1",
    ]
    assert [path.name for path in finished_runs(tmp_path / "out")] == ["cp", "dense"]
    (tmp_path / "out/results.json").unlink()
    assert [one.label for one in read_folder(str(tmp_path / "out")).results.runs] == ["dense", "cp"]


def test_a_state_of_an_older_version_is_set_aside_too(
    run: Callable[..., tuple[Results, str]], tmp_path: Path
) -> None:
    run(resume=False)
    (tmp_path / "out/runs/cp/state.json").write_text(json.dumps({"key": "of before"}))
    _, told = run()
    assert (tmp_path / f"out/runs/cp.before-{TODAY}/exports/masked").is_dir()
    assert "what it depends on cannot be told" in told


def test_a_finished_run_stays_with_other_threads(
    run: Callable[..., tuple[Results, str]], tmp_path: Path
) -> None:
    first, _ = run(resume=False)
    kept = (tmp_path / "out/runs/cp/windows/000.safetensors").read_bytes()
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        second, told = run()
    finally:
        torch.set_num_threads(before)
    assert second["cp"].figures == first["cp"].figures
    assert f"'cp' was finished with {before} thread" in told
    assert "its results are kept" in told
    assert (tmp_path / "out/runs/cp/windows/000.safetensors").read_bytes() == kept
    assert [path.name for path in (tmp_path / "out/runs").iterdir() if "before" in path.name] == []


def test_an_unfinished_run_goes_on_with_other_threads_and_shares_nothing_mixed(
    run: Callable[..., tuple[Results, str]], tmp_path: Path
) -> None:
    run(resume=False)
    folder = tmp_path / "out/runs/cp"
    first = (folder / "windows/000.safetensors").read_bytes()
    (folder / "result.json").unlink()
    (folder / "windows/001.safetensors").unlink()
    entries = {path.name for path in (tmp_path / "out/cache").rglob("*.safetensors")}
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        _, told = run()
    finally:
        torch.set_num_threads(before)
    assert "it goes on" in told
    assert (folder / "windows/000.safetensors").read_bytes() == first
    # The second window rests on one of other threads: no study may take it for its own.
    added = {p.name for p in (tmp_path / "out/cache/windows").iterdir()} - entries
    assert not added


def test_what_changed_is_said_part_by_part() -> None:
    before = {"libraries": {"torch": "1", "numpy": "2"}, "processor": ["x86", None], "dtype": "a"}
    now = {"libraries": {"torch": "2", "numpy": "2"}, "processor": ["arm", "z"], "dtype": "a"}
    assert list(identity._changes(before, now)) == ["torch 1 → 2", "the processor x86 → arm z"]
