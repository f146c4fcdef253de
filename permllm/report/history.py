"""The course of training, read back from the event log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Series = list[tuple[int, float]]
"""Steps and values, in order; steps count on from window to window, and in a window from
the learner to the pruner."""

Part = tuple[int, str]
"""A window's number, and which stage of it trains: ``permutation``, then ``pruner``."""


def training_history(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Series]]:
    """For each run that trained, each figure's course.

    What a resumed run did again counts as it was done last. Figures that were not
    finite are left out.
    """
    steps = [event for event in events if event.get("event") == "training_step"]
    starts = training_starts(steps)
    runs: dict[str, dict[str, dict[int, float]]] = {}
    for event in steps:
        step = starts[event["run"]][_part(event)] + event["step"]
        figures = runs.setdefault(event["run"], {})
        for name, value in event["figures"].items():
            if value is not None:
                figures.setdefault(name, {})[step] = value
    return {
        run: {name: sorted(values.items()) for name, values in figures.items()}
        for run, figures in runs.items()
    }


def training_starts(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[Part, int]]:
    """For each run that trained, how many steps come before each part of its training."""
    totals: dict[str, dict[Part, int]] = {}
    for event in events:
        if event.get("event") == "training_step":
            totals.setdefault(event["run"], {})[_part(event)] = event["total"]
    starts: dict[str, dict[Part, int]] = {}
    for run, parts in totals.items():
        before = 0
        for part in sorted(parts):
            starts.setdefault(run, {})[part] = before
            before += parts[part]
    return starts


def window_starts(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """For each run that trained, the steps of its history after which another part begins."""
    return {
        run: tuple(sorted({*parts.values()} - {0}))
        for run, parts in training_starts(events).items()
    }


def _part(event: Mapping[str, Any]) -> Part:
    # Older logs name no stage.
    return event["window"], event.get("stage", "permutation")
