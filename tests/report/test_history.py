"""The course of training, read back from the events."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm.observers.events import Events
from permllm.report.history import training_history, window_starts
from permllm.runs.events import read_events
from permllm.testing.observers import lead_through, toy_plan, watched


def step(window: int, number: int, loss: float | None) -> dict:
    return {
        "event": "training_step",
        "run": "lcp",
        "window": window,
        "step": number,
        "total": 2,
        "figures": {"loss": loss},
    }


def test_steps_count_on_over_windows_and_the_last_attempt_counts() -> None:
    events = [
        step(0, 1, 9.0),
        {"event": "run_failed"},
        step(0, 1, 1.0),
        step(0, 2, None),
        step(1, 1, 3.0),
    ]
    assert training_history(events) == {"lcp": {"loss": [(1, 1.0), (3, 3.0)]}}


def test_a_pruners_steps_follow_the_learners() -> None:
    pruner = {"stage": "pruner", "total": 3}
    events = [
        step(0, 2, 2.0) | {"stage": "permutation"},
        step(0, 1, 1.0) | pruner,
        step(1, 1, 4.0) | {"stage": "permutation"},
        step(1, 3, 3.0) | pruner,
    ]
    assert training_history(events) == {"lcp": {"loss": [(2, 2.0), (3, 1.0), (6, 4.0), (10, 3.0)]}}


@pytest.mark.parametrize(
    "change", [{"run": ["a"]}, {"window": None}, {"figures": 3}, {"step": "1"}, {"total": {}}]
)
def test_a_damaged_step_is_passed_over(change: dict) -> None:
    events = [step(0, 1, 9.0), step(0, 2, 3.0) | change]
    assert training_history(events) == {"lcp": {"loss": [(1, 9.0)]}}
    assert window_starts(events) == {"lcp": ()}
    for key in change:
        del events[1][key]
    assert training_history(events) == {"lcp": {"loss": [(1, 9.0)]}}


def test_parts_of_a_training_start_after_the_steps_before() -> None:
    events = [step(0, 1, 1.0), step(1, 1, 1.0), step(2, 1, 1.0)]
    assert window_starts(events) == {"lcp": (2, 4)}
    assert window_starts(events[:1]) == {"lcp": ()}


def test_history_of_a_logged_run(tmp_path: Path) -> None:
    lead_through(toy_plan(tmp_path), watched(Events(), tmp_path))
    history = training_history(read_events(tmp_path))
    assert set(history) == {"seed=1", "seed=2"}
    assert history["seed=1"]["loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert history["seed=1"]["held_out_loss"] == [(3, 0.4)]
