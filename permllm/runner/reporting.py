"""Tells the observers how a run goes."""

from __future__ import annotations

from typing import Any

import attrs

from permllm.runs.plan import Run


@attrs.frozen(eq=False)
class Reporter:
    """The life-cycle hooks, with the run that they are told of.

    Attributes:
        hook: pluggy's relay.
        run: the run; None before the first.
    """

    hook: Any
    run: Run | None

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` units of ``stage`` are done."""
        self.hook.permllm_progress(run=self.run, stage=stage, done=done, total=total)

    def step(
        self, window: int, stage: str, step: int, total: int, figures: dict[str, float]
    ) -> None:
        """Say that a training step of a window is done, with its figures."""
        self.hook.permllm_training_step(
            run=self.run, window=window, stage=stage, step=step, total=total, figures=figures
        )

    def reused(self, stage: str, seconds: float) -> None:
        """Say that a stage did not have to be done again, and the seconds that this saved."""
        self.hook.permllm_stage_reused(run=self.run, stage=stage, seconds=seconds)

    def warn(self, message: str) -> None:
        """Say what the user should know."""
        self.hook.permllm_warning(message=message)
