"""A run's folder, read for a report: what was measured, what is left to do, run with what."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from permllm.errors import UserError, did_you_mean
from permllm.files import read_sealed
from permllm.report.history import Series, training_history, window_starts
from permllm.results import DENSE, LayerReport, Results, RunResult
from permllm.runs.events import read_events
from permllm.runs.folder import (
    ENVIRONMENT,
    PIPELINE,
    RESULT,
    RESULTS,
    finished_runs,
    unique_slugs,
)
from permllm.runs.records import read_results
from permllm.runs.windows import load_window, window_path

Event = Mapping[str, Any]


class State(enum.StrEnum):
    """How far a run came."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    UNFINISHED = "unfinished"
    WAITING = "not begun"


@attrs.frozen
class RunRecord:
    """One run of the plan.

    Attributes:
        result: its figures; of a run that is not finished, those of its finished windows.
        state: how far it came.
        windows: the files of its finished windows, in order.
        history: the course of each training figure, by name.
        window_starts: the steps of ``history`` after which another window begins.
    """

    result: RunResult
    state: State
    windows: tuple[Path, ...] = ()
    history: Mapping[str, Series] = attrs.field(factory=dict)
    window_starts: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The run's label."""
        return self.result.label

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do: it finished, or its result says what broke it."""
        return self.state is State.FINISHED or self.result.error is not None


@attrs.frozen
class Record:
    """All that a run's folder tells.

    Attributes:
        name: the pipeline's name.
        folder: the folder's name.
        runs: the dense model's first, then in the order of the matrix.
        failure: what ended the pipeline outside of any run; else None.
        pipeline: the resolved pipeline file, or empty.
        environment: versions, machine and inputs, or empty.
        warnings: what the user was warned of, each once.
        last_change: when the last run began, went on or ended: ISO 8601, or empty.
    """

    name: str
    folder: str
    runs: tuple[RunRecord, ...]
    failure: str | None = None
    pipeline: str = ""
    environment: Mapping[str, Any] = attrs.field(factory=dict)
    warnings: tuple[str, ...] = ()
    last_change: str = ""

    @property
    def results(self) -> Results:
        """The results of the runs that ended, for tables and sentences."""
        return Results(self.name, self.folder, tuple(run.result for run in self.runs if run.ended))

    @property
    def pruned(self) -> tuple[RunRecord, ...]:
        """The runs but the dense model's."""
        return tuple(run for run in self.runs if run.label != DENSE)


def read_record(out: Path, results: Results | None = None) -> Record:
    """Read the folder of a finished or unfinished run.

    Args:
        out: the folder.
        results: what was measured, where that is known already.

    Raises:
        UserError: the folder holds no run, or something in it is damaged.
    """
    _check_folder(out, known=results is not None)
    if results is None and (out / RESULTS).exists():
        results = read_results(out / RESULTS, older=True)
    events = read_events(out)
    labels = [run.label for run in results.runs] if results else _planned(out, events)
    return Record(
        name=results.pipeline if results else _pipeline_name(out, events),
        folder=out.resolve().name,
        runs=tuple(_runs(out, labels, results, events)),
        failure=None if results else _failure(events, None),
        pipeline=_text(out / PIPELINE),
        environment=read_sealed(out / ENVIRONMENT, older=True)
        if (out / ENVIRONMENT).exists()
        else {},
        warnings=tuple(dict.fromkeys(_said(events, "warning", "message"))),
        last_change=next(_times(reversed(events)), ""),
    )


def _check_folder(out: Path, *, known: bool) -> None:
    if not out.is_dir():
        beside = [path.name for path in _siblings(out)]
        hint = did_you_mean(out.name, beside) if beside else "give the folder of a run"
        what = f"{out} is no folder" if out.exists() else f"there is no folder {out}"
        raise UserError(what, hint=hint)
    if not known and not _holds_run(out):
        raise UserError(
            f"the folder {out} holds no run of permllm",
            hint=f"give the folder that holds {PIPELINE} and {RESULTS}, such as runs/NAME-DATE",
        )


def _siblings(out: Path) -> list[Path]:
    folder = out.parent
    return [path for path in folder.iterdir() if _holds_run(path)] if folder.is_dir() else []


def _holds_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (PIPELINE, RESULTS))


# --- the runs -----------------------------------------------------------------------


def _runs(
    out: Path, labels: Sequence[str], results: Results | None, events: Sequence[Event]
) -> Iterator[RunRecord]:
    """Every run, from results.json or else from what its own folder and the log tell."""
    history, starts = training_history(events), window_starts(events)
    pruned = [label for label in labels if label != DENSE]
    slugs = dict(zip([DENSE, *pruned], unique_slugs([DENSE, *pruned]), strict=True))
    for label in labels:
        directory = out / "runs" / slugs[label]
        windows = _windows(directory / "windows")
        result = results[label] if results else _own_result(directory)
        if result is None:
            result, state = _unfinished(label, windows, events)
        else:
            state = State.FAILED if result.error is not None else State.FINISHED
        yield RunRecord(result, state, windows, history.get(label, {}), starts.get(label, ()))


def _planned(out: Path, events: Sequence[Event]) -> list[str]:
    """The labels of the runs that the last attempt planned, or of those that finished."""
    plans = [event["runs"] for event in events if event.get("event") == "plan_started"]
    if plans:
        return [str(label) for label in plans[-1]]
    found = [_own_result(path) for path in finished_runs(out)]
    labels = [result.label for result in found if result]
    return sorted(labels, key=lambda label: label != DENSE)


def _own_result(directory: Path) -> RunResult | None:
    """The result that a run keeps in its own folder once it has ended."""
    path = directory / RESULT
    return read_results(path, older=True).runs[0] if path.exists() else None


def _unfinished(
    label: str, windows: Sequence[Path], events: Sequence[Event]
) -> tuple[RunResult, State]:
    """What there is of a run without a result: the reports of its finished windows."""
    reports: list[LayerReport] = []
    seconds = 0.0
    for path in windows:
        window = load_window(path, weights=False)
        reports += window.reports
        seconds += window.cost.seconds
    failure = _failure(events, label)
    options = [said for said in _said(events, "run_started", "options", label) if said]
    result = RunResult(
        label,
        figures={},
        seconds=seconds,
        peak_memory_bytes=0,
        layers=tuple(reports),
        options=options[-1] if options else {},
        error=failure if failure != INTERRUPTION else None,
    )
    return result, _state(label, windows, failure, events)


def _state(
    label: str, windows: Sequence[Path], failure: str | None, events: Sequence[Event]
) -> State:
    if failure is not None:
        return State.INTERRUPTED if failure == INTERRUPTION else State.FAILED
    began = bool(windows) or any(_of(event, label) for event in events)
    return State.UNFINISHED if began else State.WAITING


def _windows(directory: Path) -> tuple[Path, ...]:
    paths = (window_path(directory, index) for index in itertools.count())
    return tuple(itertools.takewhile(Path.exists, paths))


# --- the event log ------------------------------------------------------------------

INTERRUPTION = "interrupted by the user"
"""Stands for a KeyboardInterrupt."""


def _of(event: Event, label: str | None) -> bool:
    return event.get("run") == label


def _said(events: Sequence[Event], kind: str, key: str, label: str | None = None) -> Iterator[Any]:
    """What events of a kind say under a key, in order."""
    return (
        event[key]
        for event in events
        if event.get("event") == kind and _of(event, label) and key in event
    )


def _failure(events: Sequence[Event], label: str | None) -> str | None:
    """What ended the last attempt in this run; None if nothing did."""
    for event in reversed(events):
        if event.get("event") == "plan_started":
            return None
        if event.get("event") == "run_failed" and _of(event, label):
            if event.get("error") == KeyboardInterrupt.__name__:
                return INTERRUPTION
            return f"{event.get('error')}: {event.get('message')}"
    return None


def _times(events: Iterator[Event]) -> Iterator[str]:
    kinds = ("run_started", "run_finished", "run_failed", "window_finished")
    return (str(event["time"]) for event in events if event.get("event") in kinds)


def _pipeline_name(out: Path, events: Sequence[Event]) -> str:
    names = list(_said(events, "plan_started", "pipeline"))
    return str(names[-1]) if names else out.resolve().name


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
