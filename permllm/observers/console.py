"""The console: what is going on, how far it is and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from permllm.components import Observer
from permllm.errors import PermllmError
from permllm.hooks import hookimpl
from permllm.observers.displays import Display, best_display
from permllm.observers.stages import Stage, evaluation_line, span, started, training_line
from permllm.runs.layers import mean
from permllm.units import duration, percent

if TYPE_CHECKING:
    from permllm.results import LayerReport, Results, RunResult
    from permllm.runs.plan import Plan, Run


WORTH_SAYING = 1.0
"""Seconds; what saved less is not printed."""

NAMED = 8
"""How many of a study's runs are named at its start."""


@attrs.frozen
class Console(Observer):
    """Shows progress on standard error: live on a terminal, as plain lines elsewhere."""

    name: ClassVar[str] = "console"

    def watch(self, out: Path, warn: Callable[[str], None]) -> object:
        """The narrator of one pipeline's run."""
        return Narrator(best_display())


@attrs.define(eq=False)
class Narrator:
    """Turns events into lines and stages of a display."""

    display: Display
    now: Callable[[], float] = time.monotonic
    labels: list[str] = attrs.field(factory=list)
    header: str = ""
    layers: str = ""
    windows: int = 1
    current: Stage | None = None
    looked: tuple[int, float] | None = None
    note: str = ""
    note_is_new: bool = False

    @hookimpl
    def permllm_plan_started(self, plan: Plan) -> None:
        """Say what is going to be done, and where it goes."""
        self.labels = [run.label for run in (plan.dense, *plan.runs)]
        more = len(self.labels) - NAMED
        counted = "1 run" if len(self.labels) == 1 else f"{len(self.labels)} runs"
        named = ", ".join(self.labels[:NAMED]) + (f" and {more} more" if more > 0 else "")
        self.display.line(f"{plan.pipeline.name}: {counted} ({named})", "bold")
        if plan.named:
            self.display.line(f"folder: {plan.out}")

    @hookimpl
    def permllm_run_started(self, run: Run, reused: bool) -> None:
        """Print the run's header."""
        self._nothing_goes_on()
        self.header = run.label
        if run.label in self.labels:
            place = self.labels.index(run.label) + 1
            self.header = f"run {place} of {len(self.labels)}: {run.label}"
        self.display.line(f"{self.header}{', done before' if reused else ''}", "bold")

    @hookimpl
    def permllm_progress(self, run: Run | None, stage: str, done: int, total: int) -> None:
        """Move the stage on, or begin another one."""
        label, current = run.label if run else None, self.current
        if current is None or (current.label, current.name) != (label, stage):
            if not self.note_is_new:
                self.note = ""
            self.current = current = started(label, stage, done, total, self.now())
        else:
            current.advance(done, total, self.now())
        self.note_is_new = False
        self.display.stage(current, self.note)

    @hookimpl
    def permllm_window_started(
        self, run: Run, window: int, windows: int, layers: tuple[str, ...]
    ) -> None:
        """Remember what the window is called, and how many there are."""
        self.layers, self.windows = span(layers), windows

    @hookimpl
    def permllm_training_step(self, step: int, figures: dict[str, float], replayed: bool) -> None:
        """Keep the figures beside the bar, and say how old the held-out loss is."""
        if replayed:
            # Nothing trains: what is shown next is another stage.
            return
        if step == 1:
            self.looked = None
        if "held_out_loss" in figures:
            self.looked = (step, figures["held_out_loss"])
        self.note, self.note_is_new = training_line(figures, step, self.looked), True

    @hookimpl
    def permllm_window_finished(
        self, run: Run, window: int, reports: tuple[LayerReport, ...], seconds: float
    ) -> None:
        """Print what the window's order gained."""
        self._nothing_goes_on()
        line = f"  {self.layers}: pruned in {duration(seconds)}"
        if reports:
            before = percent(mean(reports, lambda report: report.retained_before))
            after = percent(mean(reports, lambda report: report.retained))
            line += f", retained score {before} → {after}"
        left = self.windows - window - 1
        if left:
            line += f"; {left} more windows, about {duration(left * seconds)}"
        self.display.line(line)

    @hookimpl
    def permllm_run_finished(self, run: Run, result: RunResult) -> None:
        """Print the run's figures."""
        self._nothing_goes_on()
        self.display.line(f"  {evaluation_line(result.figures)}", "green")

    @hookimpl
    def permllm_stage_reused(self, run: Run | None, stage: str, seconds: float) -> None:
        """Print what did not have to be done again."""
        if seconds >= WORTH_SAYING:
            self._nothing_goes_on()
            self.display.line(f"  {stage}: done before, {duration(seconds)} saved")

    @hookimpl
    def permllm_run_failed(self, run: Run, error: Exception) -> None:
        """Print what broke the run."""
        reason = (
            str(error) if isinstance(error, PermllmError) else f"{type(error).__name__}: {error}"
        )
        stage = f" in '{self.current.name}'" if self.current else ""
        self._nothing_goes_on()
        self.display.line(f"  failed{stage}: {reason}; the other runs go on", "red")

    @hookimpl
    def permllm_plan_failed(self, run: Run | None, error: BaseException) -> None:
        """Print where it ended; what the error says is the caller's to print."""
        stage, verb = self.current, "failed"
        if isinstance(error, KeyboardInterrupt):
            # That it was interrupted, the caller says.
            verb = "stopped"
        self.display.close()
        place = [self.header] if run and self.header else []
        if stage:
            far = f" ({stage.done} of {stage.total})" if stage.measurable else ""
            place.append(f"{stage.name}{far}")
        self.display.line(": ".join([verb, ", ".join(place)]) if place else verb, "red")

    @hookimpl
    def permllm_warning(self, message: str) -> None:
        """Print a warning."""
        self.display.line(f"warning: {message}", "yellow")

    @hookimpl
    def permllm_plan_finished(self, plan: Plan, results: Results) -> None:
        """Take the progress away; the table is the caller's to print."""
        self._nothing_goes_on()
        self.display.close()

    def _nothing_goes_on(self) -> None:
        self.current, self.note = None, ""
        self.display.stage(None)
