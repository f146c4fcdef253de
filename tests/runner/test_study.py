"""Studies: work that runs have in common is done once, and nothing else changes by it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from permllm.api import run_plan
from permllm.components import Evaluator, Metric
from permllm.errors import NoSpace, RunFailed, UserError
from permllm.exporters.masked import Masked
from permllm.hookspecs import hookimpl
from permllm.registry import Registry
from permllm.results import Results
from permllm.runs.events import read_events
from permllm.runs.plan import make_plan

Write = Callable[..., Path]

CP = {"name": "cp", "rounds": 10, "steps": 10}
LCP = {"name": "lcp", "block": 8, "steps": 2, "batch": 2, "identity": 0.0, "start": CP}
"""Without a lean to the start, so that two steps leave it, and its noise counts."""
STUDY = {"layers.metric": ["magnitude", "wanda"], "layers.permutation": ["none", CP, LCP]}


def run(path: Path, out: Path, settings: tuple[str, ...] = (), **options: Any) -> Results:
    registry = Registry.load()
    registry.add(Plugin(), "plugin")
    resume = bool(options.get("resume"))
    plan = make_plan(path, registry, settings, out, resume=resume)
    return run_plan(plan, registry, **options)


def reused(out: Path) -> Counter[str]:
    """How often each kind of stage was found, by the first word of its name."""
    events = [event for event in read_events(out) if event["event"] == "stage_reused"]
    return Counter(event["stage"].split(",")[0] for event in events)


def windows(out: Path, label: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted((out / "runs" / label / "windows").glob("*.safetensors")):
        found |= {f"{path.name} {name}": tensor for name, tensor in load_file(path).items()}
    return found


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@attrs.frozen
class Breaks(Metric):
    """A metric that is never finite."""

    name = "breaks"

    def scores(self, weight: Any, statistics: Any) -> Any:
        raise ZeroDivisionError("not today")


@attrs.frozen
class Clock(Evaluator):
    """Another figure every time."""

    name = "clock"
    repeatable = False
    compares = False

    def evaluate(self, model: Any, tokenizer: Any, context: Any) -> dict[str, float]:
        assert context.held_out is None
        assert context.dense is None
        CALLS.append(1)
        return {"calls": float(len(CALLS))}


CALLS: list[int] = []


class Plugin:
    @hookimpl
    def permllm_metrics(self) -> list[type[Metric]]:
        return [Breaks]

    @hookimpl
    def permllm_evaluators(self) -> list[type[Evaluator]]:
        return [Clock]


@pytest.mark.parametrize("window", [1, "all"])
def test_a_study_gives_the_bits_of_separate_runs(
    window: int | str, write_pipeline: Write, tmp_path: Path
) -> None:
    path = write_pipeline(matrix=STUDY, layers={"window": window}, export=[])
    study = run(path, tmp_path / "study")
    assert [result.label for result in study.runs[1:]] == [
        f"{metric} {order}" for metric in ("magnitude", "wanda") for order in ("none", "cp", "lcp")
    ]
    found = reused(tmp_path / "study")
    # The first run gathers statistics for all; lcp starts where cp ended.
    assert found["statistics"] >= 5
    assert found["order (cp)"] >= 2
    for metric, order in (("magnitude", CP), ("wanda", LCP)):
        name = order["name"]
        settings = (
            "matrix=null",
            f"layers.metric={metric}",
            f"layers.permutation={json.dumps(order)}",
        )
        alone = run(path, tmp_path / f"{metric}-{name}", settings)
        assert_equal(
            windows(tmp_path / "study", f"{metric}-{name}"),
            windows(tmp_path / f"{metric}-{name}", name),
        )
        assert alone.runs[1].figures == study[f"{metric} {name}"].figures
        assert alone.runs[0].figures == study.runs[0].figures


def test_another_study_takes_what_it_needs_from_a_shared_cache(
    write_pipeline: Write, tmp_path: Path
) -> None:
    path, cache = write_pipeline(matrix={"layers.permutation": ["none", "cp"]}), tmp_path / "cache"
    first = run(path, tmp_path / "one", cache=cache)
    again = run(path, tmp_path / "two", cache=cache)
    assert [r.figures for r in first.runs] == [r.figures for r in again.runs]
    found = reused(tmp_path / "two")
    assert found["pruning"] == 2
    assert found["perplexity"] == found["fidelity"] == found["sparsity"] == 3
    assert found["statistics"] == 0  # not needed any more
    assert first["cp"].seconds == again["cp"].seconds
    for label in ("none", "cp"):
        assert_equal(windows(tmp_path / "one", label), windows(tmp_path / "two", label))
    # A link, not a copy.
    kept = tmp_path / "two/runs/cp/windows/000.safetensors"
    assert kept.stat().st_nlink >= 2


def test_other_calibration_text_shares_only_the_dense_model(
    write_pipeline: Write, tmp_path: Path
) -> None:
    path, cache = write_pipeline(layers={"permutation": "cp"}), tmp_path / "cache"
    run(path, tmp_path / "one", cache=cache)
    run(path, tmp_path / "two", ("calibration.seed=1",), cache=cache)
    found = reused(tmp_path / "two")
    # Of the dense model only: the pruned one is another.
    assert found["perplexity"] == 1
    assert found["pruning"] == found["statistics"] == found["fidelity"] == 0


def test_a_study_that_grows_does_only_what_is_new(write_pipeline: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = run(write_pipeline(matrix={"layers.permutation": ["none", "cp"]}), out)
    path = write_pipeline(matrix={"layers.permutation": ["none", "cp", "greedy"]})
    with pytest.raises(UserError, match="belongs to another pipeline"):
        run(path, out)
    grown = run(path, out, resume=True)
    assert grown.runs[:3] == small.runs
    started = [e["run"] for e in read_events(out) if e["event"] == "window_started"]
    assert started == ["none", "cp", "greedy"]
    kept = json.loads((out / "results.json").read_text())
    assert [entry["label"] for entry in kept["runs"]] == ["dense", "none", "cp", "greedy"]


def test_a_finished_study_starts_again_without_loading_the_model(
    write_pipeline: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_pipeline(), tmp_path / "out"
    before = run(path, out)
    monkeypatch.setattr("permllm.runner.shared.load", None)
    monkeypatch.setattr("permllm.runner.shared.load_tokenizer", None)
    assert run(path, out, resume=True) == before


def test_a_folder_whose_label_means_something_else_is_done_anew(
    write_pipeline: Write, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    few = {"name": "cp", "rounds": 1, "steps": 0}
    run(write_pipeline(matrix={"layers.permutation": ["none", few]}), out)
    path = write_pipeline(matrix={"layers.permutation": ["none", "cp"]})
    results = run(path, out, resume=True)
    alone = run(path, tmp_path / "alone")
    assert_equal(windows(out, "cp"), windows(tmp_path / "alone", "cp"))
    assert results["cp"].figures == alone["cp"].figures


def test_one_failed_run_leaves_the_others(write_pipeline: Write, tmp_path: Path) -> None:
    matrix = {"layers.metric": ["breaks", "wanda"]}
    path, out = write_pipeline(matrix=matrix, layers={"permutation": "none"}), tmp_path / "out"
    results = run(path, out)
    broken, fine = results.runs[1:]
    assert broken.error == "ZeroDivisionError: not today"
    assert broken.figures == {}
    assert fine.error is None
    assert fine.figures["perplexity/test"] > 1
    assert results.failed == (broken,)
    events = [event["event"] for event in read_events(out)]
    assert events.count("run_failed") == 1
    assert "plan_failed" not in events
    assert json.loads((out / "results.json").read_text())["runs"][1]["error"] == broken.error
    # It is tried again, the other one is not done again.
    again = run(path, out, resume=True)
    assert again.runs[2] == fine
    assert again.runs[1].error == broken.error


def test_where_all_runs_fail_there_is_no_result(write_pipeline: Write, tmp_path: Path) -> None:
    path = write_pipeline(layers={"metric": "breaks", "permutation": "none"})
    with pytest.raises(ZeroDivisionError):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out/results.json").exists()


def test_figures_that_vary_are_measured_anew(write_pipeline: Write, tmp_path: Path) -> None:
    CALLS.clear()
    path = write_pipeline(evaluate=["clock"], layers={"permutation": "none"}, export=[])
    for name in ("one", "two"):
        run(path, tmp_path / name, cache=tmp_path / "cache")
    assert len(CALLS) == 4


def test_a_damaged_entry_is_computed_again(write_pipeline: Write, tmp_path: Path) -> None:
    path, cache = write_pipeline(layers={"permutation": "none"}), tmp_path / "cache"
    first = run(path, tmp_path / "one", cache=cache)
    shutil.rmtree(cache / "windows")
    (damaged,) = [
        entry for entry in (cache / "permutations").iterdir() if entry.suffix == ".safetensors"
    ]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    again = run(path, tmp_path / "two", cache=cache)
    warnings = [e["message"] for e in read_events(tmp_path / "two") if e["event"] == "warning"]
    assert any("is damaged" in warning for warning in warnings)
    assert again.runs[1].figures == first.runs[1].figures


def test_a_damaged_window_of_the_run_is_pruned_again(write_pipeline: Write, tmp_path: Path) -> None:
    path, out = write_pipeline(layers={"permutation": "none"}), tmp_path / "out"
    before = run(path, out)
    window = out / "runs/none/windows/000.safetensors"
    kept = window.read_bytes()
    window.unlink()
    window.write_bytes(kept[: len(kept) // 2])
    (out / "runs/none/result.json").unlink()
    again = run(path, out, resume=True)
    assert window.read_bytes() == kept
    assert again.runs[1].figures == before.runs[1].figures


def test_runs_that_fail_for_the_users_input_are_marked_too(
    write_pipeline: Write, tmp_path: Path
) -> None:
    matrix = {"calibration.sequences": [4, 100_000]}
    results = run(write_pipeline(matrix=matrix, layers={"permutation": "none"}), tmp_path / "out")
    assert results.runs[1].error is None
    assert "tokens" in str(results.runs[2].error)


# --- disks that take nothing more ------------------------------------------------------

SPACE = {
    "the operating system": OSError(28, "No space left on device"),
    "safetensors": SafetensorError("Error while serializing: I/O error: … (os error 28)"),
    "a check": NoSpace("the export needs about 900 MiB and 64 MiB to spare"),
}


@pytest.mark.parametrize("whose", SPACE)
def test_a_full_disk_stops_the_study_at_once_and_it_goes_on_later(
    write_pipeline: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    orders = {"layers.permutation": ["none", CP]}
    path, out, tried = write_pipeline(matrix=orders, evaluate=[]), tmp_path / "out", []

    def full(self: Masked, context: Any, directory: Path) -> None:
        tried.append(context.label)
        raise SPACE[whose]

    with monkeypatch.context() as patch:
        patch.setattr(Masked, "export", full)
        with pytest.raises(RunFailed, match=r"^the disk is full \(.*\); the runs that are left "):
            run(path, out)
    assert tried == ["none"]
    assert windows(out, "none")
    assert not windows_exist(out, "cp")
    results = run(path, out, resume=True)
    assert not results.failed
    assert (out / "runs" / "cp" / "exports" / "masked").is_dir()


def windows_exist(out: Path, label: str) -> bool:
    return any((out / "runs" / label).glob("windows/*.safetensors"))


def test_another_error_of_the_operating_system_is_the_runs_own(
    write_pipeline: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pipeline(matrix={"layers.permutation": ["none", CP]}, evaluate=[])
    export, tried = Masked.export, []

    def fails_once(self: Masked, context: Any, directory: Path) -> None:
        tried.append(context.label)
        if len(tried) == 1:
            raise FileNotFoundError(2, "No such file")
        export(self, context, directory)

    monkeypatch.setattr(Masked, "export", fails_once)
    results = run(path, tmp_path / "out")
    assert [result.label for result in results.failed] == ["none"]
