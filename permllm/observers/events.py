"""The event log: everything that happens in a pipeline's run, one JSON object a line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from permllm.components import Observer
from permllm.hooks import hookimpl
from permllm.redaction import redacted
from permllm.runs.events import FILE, finite

if TYPE_CHECKING:
    from permllm.results import LayerReport, Results, RunResult
    from permllm.runs.plan import Plan, Run

SECONDS_BETWEEN_PROGRESS = 1.0
"""Progress of one stage is logged no more often than this; its start and end always are."""


@attrs.frozen
class Events(Observer):
    """Writes every event of a run to events.jsonl."""

    name: ClassVar[str] = "events"

    def watch(self, out: Path, warn: Callable[[str], None]) -> object:
        """The log of one run; a resumed run adds to the log that is there."""
        log = EventLog(out / FILE, warn)
        log.end_last_line()
        return log


@attrs.define(eq=False)
class EventLog:
    """Appends events to a file.

    Every line is written and closed at once, so that whatever ends the process loses
    none. A line is ``{"time": ISO 8601 in UTC, "event": …, "run": label or null, …}``;
    numbers that JSON lacks (NaN and the infinities) become null.
    """

    path: Path
    warn: Callable[[str], None]
    broken: bool = False
    last_progress: tuple[str | None, str, float] = (None, "", -math.inf)

    def end_last_line(self) -> None:
        """End the line that a killed process may have left half written."""
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self._append("\n")

    @hookimpl
    def permllm_plan_started(self, plan: Plan) -> None:
        """Log the pipeline's name and its runs."""
        labels = [run.label for run in (plan.dense, *plan.runs)]
        self._write("plan_started", None, pipeline=plan.pipeline.name, runs=labels)

    @hookimpl
    def permllm_run_started(self, run: Run, reused: bool) -> None:
        """Log a run with what the matrix set for it."""
        self._write("run_started", run, options=run.options, reused=reused)

    @hookimpl
    def permllm_progress(self, run: Run | None, stage: str, done: int, total: int) -> None:
        """Log a stage's start, its end and now and then what lies between."""
        label, now = run.label if run else None, time.monotonic()
        same = self.last_progress[:2] == (label, stage)
        if same and done < total and now - self.last_progress[2] < SECONDS_BETWEEN_PROGRESS:
            return
        self.last_progress = (label, stage, now)
        self._write("progress", run, stage=stage, done=done, total=total)

    @hookimpl
    def permllm_window_started(self, run: Run, window: int, layers: tuple[str, ...]) -> None:
        """Log a window with its layers."""
        self._write("window_started", run, window=window, layers=list(layers))

    @hookimpl
    def permllm_training_step(
        self,
        run: Run,
        window: int,
        stage: str,
        step: int,
        total: int,
        figures: dict[str, float],
        replayed: bool,
    ) -> None:
        """Log a training step with all its figures."""
        self._write(
            "training_step",
            run,
            window=window,
            stage=stage,
            step=step,
            total=total,
            figures=figures,
            replayed=replayed,
        )

    @hookimpl
    def permllm_window_finished(
        self, run: Run, window: int, reports: tuple[LayerReport, ...], seconds: float
    ) -> None:
        """Log a window with the figures of its linears."""
        layers = [attrs.asdict(report) for report in reports]
        self._write("window_finished", run, window=window, seconds=seconds, layers=layers)

    @hookimpl
    def permllm_evaluated(self, run: Run, figures: dict[str, float]) -> None:
        """Log what the evaluators measured."""
        self._write("evaluated", run, figures=figures)

    @hookimpl
    def permllm_exported(self, run: Run, exporter: str, directory: Path) -> None:
        """Log where a model was written to."""
        self._write("exported", run, exporter=exporter, directory=str(directory))

    @hookimpl
    def permllm_run_finished(self, run: Run, result: RunResult) -> None:
        """Log the run's figures, time and memory."""
        summary = {
            "figures": result.figures,
            "seconds": result.seconds,
            "peak_memory_bytes": result.peak_memory_bytes,
        }
        self._write("run_finished", run, **summary)

    @hookimpl
    def permllm_stage_reused(self, run: Run | None, stage: str, seconds: float) -> None:
        """Log what did not have to be done again."""
        self._write("stage_reused", run, stage=stage, seconds=seconds)

    @hookimpl
    def permllm_run_failed(self, run: Run, error: Exception) -> None:
        """Log what broke a run."""
        self._write("run_failed", run, error=type(error).__name__, message=str(error))

    @hookimpl
    def permllm_plan_failed(self, run: Run | None, error: BaseException) -> None:
        """Log what ended the plan early."""
        self._write("plan_failed", run, error=type(error).__name__, message=str(error))

    @hookimpl
    def permllm_warning(self, message: str) -> None:
        """Log a warning."""
        self._write("warning", None, message=message)

    @hookimpl
    def permllm_plan_finished(self, plan: Plan, results: Results) -> None:
        """Log the end."""
        self._write("plan_finished", None, pipeline=plan.pipeline.name)

    def _write(self, event: str, run: Run | None, **facts: Any) -> None:
        head = {"time": now_in_utc(), "event": event, "run": run.label if run else None}
        self._append(
            json.dumps(finite(redacted(head | facts)), ensure_ascii=False, default=str) + "\n"
        )

    def _append(self, text: str) -> None:
        if self.broken:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            self.broken = True
            self.warn(
                f"{self.path} cannot be written ({error.strerror}); events are no longer kept"
            )


def now_in_utc() -> str:
    """Such as ``2025-01-31T12:00:00.000+00:00``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
