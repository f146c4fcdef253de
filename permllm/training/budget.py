"""How many steps a training makes: a number, or as many as fit into a time."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import attrs

from permllm.components import PermutationLearner

if TYPE_CHECKING:
    from torch import Tensor

    from permllm.contexts.window import Window

STEP_PER_LOOK = 3.0
"""How long a step is taken to last before any is done: so many times a look at as many held-out
sequences, which is a forward pass like its own without the way back."""

FEWEST_STEPS = 2
"""The fewest steps that a budget is spent on: one alone goes where a single batch says, and did
harm on other text."""

WANTED_STEPS = 4
"""A budget that has no room for so many steps makes smaller ones."""

GUESSED_SPEED = 1.0
"""Steps per second that a budget is taken to afford, before any is done."""

START_SHARE = 0.25
"""The share of a budget that a search to start from may take: steps are worth more."""


class StepCount:
    """How many steps a training has: a number, or as many as fit into a time.

    Args:
        steps: the number; with a time, a first guess.
        seconds: the time, from now on; None for the number.
    """

    def __init__(self, steps: int, seconds: float | None = None) -> None:
        self.steps, self.seconds, self.began = steps, seconds, time.monotonic()
        self.first: float | None = None

    def total(self, done: int) -> int:
        """The number of steps in all, judged by the ``done`` ones so far."""
        now = time.monotonic()
        if self.seconds is None or self.first is None or not done:
            self.first = now
            return self.steps
        left = self.began + self.seconds - now
        return done + max(0, int(left * done / max(now - self.first, 1e-9)))

    def spent(self) -> tuple[float, float | None]:
        """Seconds since it began, and since the first step; None before that."""
        now = time.monotonic()
        return now - self.began, None if self.first is None else now - self.first

    def go_on(self, spent: float, stepped: float | None) -> None:
        """Count as spent what an interrupted training took; see :meth:`spent`."""
        now = time.monotonic()
        self.began = now - spent
        self.first = None if stepped is None else now - stepped

    def sized(self, batch: int, pace: float) -> tuple[int, int]:
        """Sequences per step, and how many steps, in a time of which none are done yet.

        Args:
            batch: the most sequences.
            pace: seconds that a step of one sequence is thought to take.

        Returns:
            As many sequences as leave room for four steps, at least one; and no step
            where there is no room for two.
        """
        now = self.first = time.monotonic()
        left = self.began + (self.seconds or 0.0) - now
        batch = max(1, min(batch, int(left / (pace * WANTED_STEPS))))
        steps = int(left / (pace * batch))
        return batch, steps if steps >= FEWEST_STEPS else 0


def steps_of(steps: int | None, passes: int, batch: int, sequences: int) -> int:
    """A number of steps, or as many as passes over ``sequences`` take."""
    return steps or passes * math.ceil(sequences / batch)


def guessed_steps(seconds: float) -> int:
    """How many steps a time is taken to hold, before any is done."""
    return max(1, round(seconds * GUESSED_SPEED))


def first_permutations(
    learner: PermutationLearner, window: Window, budget: float | None
) -> dict[str, Tensor]:
    """What another learner learns, for one that starts from it.

    A search that would take more than its share of a budget is held to that.

    Args:
        learner: the other.
        window: the window.
        budget: seconds for search and training together, or None.
    """
    return window.permutations(within_share(learner, len(window.groups), budget))


def within_share(
    learner: PermutationLearner, groups: int, budget: float | None
) -> PermutationLearner:
    """A search to start a training from, held to its share of the training's budget.

    Args:
        learner: the search; one that has a ``time_limit`` already keeps it.
        groups: how many permutation groups it searches.
        budget: seconds for search and training together, or None.
    """
    if budget is None or getattr(learner, "time_limit", 0.0) is not None:
        return learner
    limit = budget * START_SHARE / groups
    if learner.seconds_per_group <= limit:
        return learner
    return attrs.evolve(learner, time_limit=limit)  # type: ignore[misc]
