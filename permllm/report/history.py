"""The course of training, read back from the event log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import attrs

from permllm.errors import UserError
from permllm.files import converted
from permllm.runs.events import FILE

Series = list[tuple[int, float]]
"""Steps and values, in order; steps count on from window to window, and in a window from
the learner to the pruner."""

Part = tuple[int, str]
"""A window's number, and which stage of it trains: ``permutation``, then ``pruner``."""


@attrs.frozen
class _Step:
    """The event of one training step."""

    run: str
    window: int
    step: int
    total: int
    figures: dict[str, float | None]
    stage: str = "permutation"  # older logs name none

    @property
    def part(self) -> Part:
        return self.window, self.stage


def training_history(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Series]]:
    """For each run that trained, each figure's course.

    What a resumed run did again counts as it was done last. Figures that were not
    finite are left out.
    """
    steps = list(_steps(events))
    starts = _starts(steps)
    runs: dict[str, dict[str, dict[int, float]]] = {}
    for one in steps:
        step = starts[one.run][one.part] + one.step
        figures = runs.setdefault(one.run, {})
        for name, value in one.figures.items():
            if value is not None:
                figures.setdefault(name, {})[step] = value
    return {
        run: {name: sorted(values.items()) for name, values in figures.items()}
        for run, figures in runs.items()
    }


def training_starts(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[Part, int]]:
    """For each run that trained, how many steps come before each part of its training."""
    return _starts(_steps(events))


def window_starts(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """For each run that trained, the steps of its history after which another part begins."""
    return {
        run: tuple(sorted({*parts.values()} - {0}))
        for run, parts in training_starts(events).items()
    }


def _steps(events: Iterable[Mapping[str, Any]]) -> Iterator[_Step]:
    """The training steps among events; one that is damaged is passed over, as half a line is."""
    for event in events:
        if event.get("event") == "training_step":
            with suppress(UserError):
                yield converted(event, _Step, FILE)


def _starts(steps: Iterable[_Step]) -> dict[str, dict[Part, int]]:
    totals: dict[str, dict[Part, int]] = {}
    for step in steps:
        totals.setdefault(step.run, {})[step.part] = step.total
    starts: dict[str, dict[Part, int]] = {}
    for run, parts in totals.items():
        before = 0
        for part in sorted(parts):
            starts.setdefault(run, {})[part] = before
            before += parts[part]
    return starts
