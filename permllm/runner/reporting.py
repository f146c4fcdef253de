"""Tells the observers how a run goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


@attrs.frozen
class Event:
    """A call of a hook, without its run.

    Attributes:
        hook: its name.
        facts: its arguments.
        of_run: whether the run is one of them; None where it has no such argument.
    """

    hook: str
    facts: dict[str, Any]
    of_run: bool | None

    @classmethod
    def of(cls, hook: str, facts: dict[str, Any]) -> Event:
        """A call with these arguments."""
        of_run = facts["run"] is not None if "run" in facts else None
        rest = {name: fact for name, fact in facts.items() if name != "run"}
        return cls(hook, rest, of_run)

    def tell(self, hook: Any, run: Run | None) -> None:
        """Call the hook, for this run."""
        whose = {} if self.of_run is None else {"run": run if self.of_run else None}
        getattr(hook, self.hook)(**whose, **self.facts)


@attrs.define(eq=False)
class Noted:
    """Hooks that note what observers are told of later.

    Attributes:
        events: all that happened, but how far stages were.
    """

    events: list[Event] = attrs.field(factory=list)

    def __getattr__(self, name: str) -> Callable[..., list[Any]]:
        if not name.startswith("permllm_"):
            raise AttributeError(name)
        return partial(self._note, name)

    def _note(self, name: str, **facts: Any) -> list[Any]:
        if name != "permllm_progress":
            self.events.append(Event.of(name, facts))
        return []


class _Nobody:
    """Hooks that nobody hears."""

    def __getattr__(self, name: str) -> Any:
        return lambda **facts: []


def hooks_of(registry: Registry, world: World) -> Any:
    """The life-cycle hooks (pluggy's relay), which the first of several processes calls for all."""
    return registry.manager.hook if world.leads else _Nobody()
