"""The event log: every line is JSON, none is lost, none is doubled."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from permllm.observers.events import Events
from permllm.runs.events import FILE, finite, read_events
from permllm.testing import check_observer
from permllm.testing.observers import lead_through, lead_to_an_interruption, toy_plan


def test_contract() -> None:
    check_observer(Events())


def test_every_line_says_when_what_and_which_run(tell, tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    lead_through(toy_plan(tmp_path), tell(tmp_path, Events()).hook)
    events = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert all(before <= datetime.fromisoformat(event["time"]) for event in events)
    assert events[0]["event"] == "plan_started"
    assert events[-1]["event"] == "plan_finished"
    steps = [event for event in events if event["event"] == "training_step"]
    assert [(event["run"], event["step"]) for event in steps] == [
        (label, step) for label in ("seed=1", "seed=2") for step in (1, 2, 3)
    ]
    assert steps[2]["figures"]["held_out_loss"] == 0.4
    assert read_events(tmp_path) == events


def test_resumed_run_adds_to_the_log(tell, tmp_path: Path) -> None:
    plan = toy_plan(tmp_path)
    lead_to_an_interruption(plan, tell(tmp_path, Events()).hook)
    first = read_events(tmp_path)
    assert first[-1]["error"] == "KeyboardInterrupt"
    with (tmp_path / FILE).open("a") as file:
        file.write('{"event": "half a li')
    lead_through(plan, tell(tmp_path, Events()).hook)
    events = read_events(tmp_path)
    assert events[: len(first)] == first
    assert events[len(first)]["event"] == "plan_started"


def test_progress_is_logged_at_start_and_end_and_seldom_between(tell, tmp_path: Path) -> None:
    hook = tell(tmp_path, Events()).hook
    for done in range(1001):
        hook.permllm_progress(run=None, stage="reading", done=done, total=1000)
    said = [event["done"] for event in read_events(tmp_path)]
    assert said[0] == 0
    assert said[-1] == 1000
    assert len(said) < 100


def test_numbers_that_json_lacks_become_null(tell, tmp_path: Path) -> None:
    plan = toy_plan(tmp_path)
    figures = {"loss": math.nan, "temperature": math.inf, "learning_rate": 0.5}
    tell(tmp_path, Events()).hook.permllm_training_step(
        run=plan.runs[0],
        window=0,
        stage="pruner",
        step=1,
        total=1,
        figures=figures,
        replayed=False,
    )
    (event,) = read_events(tmp_path)
    assert event["figures"] == {"loss": None, "temperature": None, "learning_rate": 0.5}


def test_log_that_cannot_be_written_is_one_warning(tell, tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    told = tell(tmp_path / "run", Events())
    (tmp_path / "run" / FILE).mkdir()
    lead_through(toy_plan(tmp_path / "run"), told.hook)
    assert len(told.warnings) == 1
    assert FILE in told.warnings[0]


def test_no_log_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
plain = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(plain)
def test_finite_data_is_strict_json(data: object) -> None:
    text = json.dumps(finite(data), allow_nan=False)
    assert finite(json.loads(text)) == finite(data)
