"""Tells the observers how a run goes."""

from __future__ import annotations

from typing import Any

import attrs

from permllm.registry import Registry
from permllm.runs.plan import Run
from permllm.runs.windows import TrainingStep
from permllm.world import World


@attrs.frozen(eq=False)
class Reporter:
    """The life-cycle hooks, with the run that they are told of.

    Attributes:
        hook: pluggy's relay.
        run: the run; None before the first.
        course: the training steps of the current window so far.
    """

    hook: Any
    run: Run | None
    course: list[TrainingStep] = attrs.field(factory=list)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` units of ``stage`` are done."""
        self.hook.permllm_progress(run=self.run, stage=stage, done=done, total=total)

    def step(self, window: int, made: TrainingStep, *, replayed: bool = False) -> None:
        """Say that a training step of a window is done, now or in another run."""
        self.course.append(made)
        facts = attrs.asdict(made)
        self.hook.permllm_training_step(run=self.run, window=window, replayed=replayed, **facts)

    def reused(self, stage: str, seconds: float) -> None:
        """Say that a stage did not have to be done again, and the seconds that this saved."""
        self.hook.permllm_stage_reused(run=self.run, stage=stage, seconds=seconds)

    def warn(self, message: str) -> None:
        """Say what the user should know."""
        self.hook.permllm_warning(message=message)


class _Nobody:
    """Hooks that nobody hears."""

    def __getattr__(self, name: str) -> Any:
        return lambda **facts: []


def hooks_of(registry: Registry, world: World) -> Any:
    """The life-cycle hooks (pluggy's relay), which the first of several processes calls for all."""
    return registry.manager.hook if world.leads else _Nobody()
