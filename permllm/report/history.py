"""The course of training, read back from the event log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Series = list[tuple[int, float]]
"""Steps and values, in order; steps count on from window to window."""


def training_history(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Series]]:
    """For each run that trained, each figure's course.

    What a resumed run did again counts as it was done last. Figures that were not
    finite are left out.
    """
    runs: dict[str, dict[str, dict[int, float]]] = {}
    for event in events:
        if event.get("event") != "training_step":
            continue
        step = event["window"] * event["total"] + event["step"]
        figures = runs.setdefault(event["run"], {})
        for name, value in event["figures"].items():
            if value is not None:
                figures.setdefault(name, {})[step] = value
    return {
        run: {name: sorted(values.items()) for name, values in figures.items()}
        for run, figures in runs.items()
    }
