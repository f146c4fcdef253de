"""The loop of components that train through a window, and keep what does best on held-out text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from permllm.errors import RunFailed

if TYPE_CHECKING:
    from permllm.contexts.window import Window

T_co = TypeVar("T_co", covariant=True)


class Trainee(Protocol[T_co]):
    """What is trained.

    Attributes:
        total: how many steps there will be, as far as is known; the loop keeps it up to date,
            so that schedules fit a training that ends at a time.
    """

    total: int

    def step(self, rows: Tensor, step: int) -> dict[str, float]:
        """One training step, counted from 1; its figures, ``loss`` among them.

        Args:
            rows: ``LongTensor[b]``, learning sequences of the window.
            step: its number.
        """
        ...

    def snapshot(self, step: int) -> tuple[T_co, float]:
        """The result as it is at a step, and its loss on the held-out sequences."""
        ...


STEP_PER_LOOK = 3.0
"""How long a step is taken to last before any is done: so many times a look at as many held-out
sequences, which is a forward pass like its own without the way back."""


FEWEST_STEPS = 2
"""The fewest steps that a budget is spent on: one alone goes where a single batch says, and did
harm on other text."""

WANTED_STEPS = 4
"""A budget that has no room for so many steps makes smaller ones."""


MOST_LOOKS = 50
"""About how often a training looks at held-out text at most: a look may take as long as a step."""


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


def train(
    trainee: Trainee[T_co],
    window: Window,
    *,
    count: StepCount,
    batch: int,
    fresh: bool,
    best: bool,
) -> T_co:
    """Train, and say after every step how it goes.

    Args:
        trainee: what is trained.
        window: gives the sequences; it is told of every step.
        count: how many steps.
        batch: sequences per step; fewer where a time has no room for four steps.
        fresh: draw from all learning sequences, not only from one pass of calibration.
        best: keep the result that does best on held-out sequences, looked at after every
            pass, or less often in a long training, the beginning included; else, or where there
            are none, the last. The first look also tells how long steps will take. A time
            without room for two then leaves the beginning as it is.

    Raises:
        RunFailed: the loss is not finite.
    """
    window.progress("learning", 0, trainee.total)
    best = best and len(window.held_out) > 0
    kept, least = None, math.inf
    began = time.monotonic()
    if best:
        kept, least = trainee.snapshot(step=1)
    if best and count.seconds is not None:
        pace = STEP_PER_LOOK * (time.monotonic() - began) / len(window.held_out)
        batch, trainee.total = count.sized(batch, pace)
        if not trainee.total:
            window.warn(
                f"no training: a step takes about {pace * batch:.0f} s here, and the budget has "
                f"no room for {FEWEST_STEPS}; what training starts from is kept"
            )
    else:
        trainee.total = count.total(0)
    a_pass = max(1, math.ceil(window.calibration / batch))
    drawn = batches(window, batch, fresh=fresh)
    step = looked = 0
    window.progress("learning", 0, trainee.total)
    while step < trainee.total:
        step += 1
        figures = trainee.step(next(drawn), step)
        if not math.isfinite(figures["loss"]):
            raise RunFailed(
                f"the loss of {window.name} is {figures['loss']} at step {step}; "
                "a smaller learning_rate or float32 may help"
            )
        trainee.total = count.total(step)
        due = step - looked >= max(a_pass, trainee.total // MOST_LOOKS)
        if best and (due or step >= trainee.total):
            looked = step
            result, figures["held_out_loss"] = trainee.snapshot(step)
            if figures["held_out_loss"] < least:
                kept, least = result, figures["held_out_loss"]
        window.training_step(step, trainee.total, figures)
    return trainee.snapshot(step)[0] if kept is None else kept


def batches(window: Window, batch: int, *, fresh: bool) -> Iterator[Tensor]:
    """Rows of the learning sequences for each step, drawn without replacement in a pass.

    They were drawn from the text at random, so the first pass takes them as they come: the
    dense model's outputs are computed for neighbours together, and a training that ends
    early then wants no others.
    """
    pool = len(window.learning) if fresh else window.calibration
    generator = torch.Generator().manual_seed(window.seed + 1)
    order = torch.arange(pool)
    while True:
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(pool, generator=generator)])
        yield window.learning[order[:batch]]
        order = order[batch:]


def linear_between(first: float, last: float, step: int, steps: int) -> float:
    """From ``first`` at step 1 to ``last`` at the last step."""
    return first + (last - first) * (step - 1) / max(1, steps - 1)


def cosine_decay(rate: float, step: int, steps: int) -> float:
    """Half a cosine from ``rate`` at step 1 down to zero."""
    return rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
