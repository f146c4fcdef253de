"""What a folder tells about its runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from permllm.errors import UserError
from permllm.report.record import State, read_record
from permllm.testing.studies import Made, write_study


def states(record) -> dict[str, State]:
    return {run.label: run.state for run in record.runs}


def test_a_finished_study(tmp_path: Path) -> None:
    results = write_study(tmp_path / "toy")
    record = read_record(tmp_path / "toy")
    assert (record.name, record.folder) == ("toy", "toy")
    assert set(states(record).values()) == {State.FINISHED}
    assert [run.result for run in record.runs] == list(results.runs)
    assert [len(run.windows) for run in record.runs] == [0, 4, 4, 4]
    assert list(record.runs[3].history) == ["loss", "temperature", "held_out_loss"]
    assert record.last_change.startswith("2026-01-31T12:34")


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        ("KeyboardInterrupt", State.INTERRUPTED, None),
        ("RunFailed", State.FAILED, "RunFailed: it <broke>"),
    ],
)
def test_an_ended_attempt(tmp_path: Path, error, state, message) -> None:
    runs = [
        Made("cp"),
        Made("lcp", result=False, windows=1, steps=2),
        Made("x", result=False, windows=0),
    ]
    write_study(tmp_path, runs, finished=False, failure=("lcp", error))
    record = read_record(tmp_path)
    assert states(record) == {
        "dense": State.FINISHED,
        "cp": State.FINISHED,
        "lcp": state,
        "x": State.WAITING,
    }
    lcp = record.runs[2]
    assert lcp.result.error == message
    assert len(lcp.result.layers) == 3
    assert lcp.result.options == {"layers.permutation": {"name": "lcp"}}
    assert [run.label for run in record.runs if run.ended] == [
        "dense", "cp", *(["lcp"] if message else []),
    ]  # fmt: skip


def test_going_on_forgets_the_last_attempts_failure(tmp_path: Path) -> None:
    begun = [Made("lcp", result=False, windows=1)]
    write_study(tmp_path, begun, finished=False, failure=("lcp", "E"))
    plan = {"event": "plan_started", "run": None, "pipeline": "toy", "runs": ["dense", "lcp"]}
    with (tmp_path / "events.jsonl").open("a") as log:
        log.write(json.dumps(plan | {"time": "2026-01-31T13:00:00.000+00:00"}) + "\n")
    assert states(read_record(tmp_path))["lcp"] is State.UNFINISHED


def test_a_failure_outside_of_the_runs(tmp_path: Path) -> None:
    write_study(
        tmp_path, [Made("cp", result=False, windows=0)], finished=False, failure=(None, "OSError")
    )
    assert read_record(tmp_path).failure == "OSError: it <broke>"


def test_without_a_log_the_finished_runs_remain(tmp_path: Path) -> None:
    write_study(tmp_path, finished=False)
    (tmp_path / "events.jsonl").unlink()
    record = read_record(tmp_path)
    assert [run.label for run in record.runs] == ["dense", "cp", "lcp", "none"]
    assert set(states(record).values()) == {State.FINISHED}


def test_steps_of_several_windows_are_told_apart(tmp_path: Path) -> None:
    write_study(tmp_path, [Made("lcp", steps=3)])
    with (tmp_path / "events.jsonl").open("a") as log:
        for step in (1, 2, 3):
            event = {"event": "training_step", "run": "lcp", "window": 1, "step": step, "total": 3}
            log.write(json.dumps(event | {"figures": {"loss": 1.0}}) + "\n")
    run = read_record(tmp_path).runs[1]
    assert [step for step, _ in run.history["loss"]] == [1, 2, 3, 4, 5, 6]
    assert run.window_starts == (3,)


def test_no_run(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="holds no run of permllm"):
        read_record(tmp_path / "other")
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "pipeline.yaml").write_text("")
    with pytest.raises(UserError, match="there is no folder") as raised:
        read_record(tmp_path / "quikstart")
    assert raised.value.hint == "did you mean 'quickstart'? known: quickstart"
    with pytest.raises(UserError, match="is no folder"):
        read_record(tmp_path / "quickstart" / "pipeline.yaml")


@pytest.mark.parametrize("text", ["{", "[1]", '{"pipeline": "x", "runs": [{}]}'])
def test_damaged_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json"):
        read_record(tmp_path)


def test_a_damaged_window(tmp_path: Path) -> None:
    write_study(tmp_path, [Made("cp", result=False)], finished=False)
    (tmp_path / "runs" / "cp" / "windows" / "001.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"the window .* is damaged"):
        read_record(tmp_path)
