"""The loop of components that train through a window, and keep what does best on held-out text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs
import torch
from torch import Tensor

from permllm.deprecation import warn_of_old_name
from permllm.errors import RunFailed
from permllm.training.budget import FEWEST_STEPS, STEP_PER_LOOK, StepCount
from permllm.training.losses import WindowLoss

if TYPE_CHECKING:
    from permllm.contexts.window import Window

__all__ = ["Step", "StepCount", "Trainee", "batches", "cosine_decay", "linear_between", "train",
           "train_step"]  # fmt: skip

T = TypeVar("T")

MOST_LOOKS = 50
"""About how often a training looks at held-out text at most: a look may take as long as a step."""


@attrs.frozen
class Step:
    """Where a training stands.

    Attributes:
        number: of the step, from 1; 0 before the first.
        total: how many there will be, as far as is known, so that schedules fit a training
            that ends at a time.
    """

    number: int
    total: int

    def between(self, first: float, last: float) -> float:
        """From ``first`` at step 1, and before it, to ``last`` at the last step."""
        return linear_between(first, last, max(1, self.number), self.total)


class Trainee(Generic[T]):
    """What is trained: parameters, the window's weights under them, and what they come to.

    Attributes:
        optimiser: of the parameters; the loop sets its learning rate before every step.
    """

    optimiser: torch.optim.Optimizer

    def weights(self, at: Step) -> Mapping[str, Tensor]:
        """The pruned weights ``[C_out, C_in]`` by linear; gradients flow to the parameters."""
        raise NotImplementedError

    def result(self, at: Step) -> tuple[T, Mapping[str, Tensor]]:
        """What there would be to keep at a step, and the weights that it gives the window.

        Called without gradients. The weights are judged on held-out sequences.
        """
        raise NotImplementedError

    def figures(self, at: Step) -> dict[str, float]:
        """What else to record of a step, such as a temperature."""
        return {}


def train(
    trainee: Trainee[T],
    window: Window,
    loss: WindowLoss,
    *,
    rate: Callable[[int, int], float],
    count: StepCount,
    batch: int,
    fresh: bool,
    best: bool,
) -> T:
    """Train, and say after every step how it goes.

    Args:
        trainee: what is trained.
        window: gives the sequences; it is told of every step.
        loss: of the window under the trainee's weights.
        rate: the learning rate at a step, counted from 1, of so many.
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
    if not isinstance(trainee, Trainee):
        warn_of_old_name("a trainee with step() and snapshot()", "permllm.training.loop.Trainee")
    window.progress("learning", 0, count.steps)
    best = best and len(window.held_out) > 0
    kept, least, total, judged_by = None, math.inf, count.steps, batch
    began = time.monotonic()
    if best:
        kept, least = _look(trainee, loss, Step(0, total), judged_by)
    if best and count.seconds is not None:
        pace = STEP_PER_LOOK * (time.monotonic() - began) / len(window.held_out)
        batch, total = count.sized(batch, pace)
        if not total:
            window.warn(
                f"no training: a step takes about {pace * batch:.0f} s here, and the budget has "
                f"no room for {FEWEST_STEPS}; what training starts from is kept"
            )
    else:
        total = count.total(0)
    a_pass = max(1, math.ceil(window.calibration / batch))
    drawn = batches(window, batch, fresh=fresh)
    step = looked = 0
    window.progress("learning", 0, total)
    while step < total:
        step += 1
        figures = _step(trainee, loss, next(drawn), Step(step, total), rate(step, total))
        if not math.isfinite(figures["loss"]):
            raise RunFailed(
                f"the loss of {window.name} is {figures['loss']} at step {step}; "
                "a smaller learning_rate or float32 may help"
            )
        total = count.total(step)
        due = step - looked >= max(a_pass, total // MOST_LOOKS)
        if best and (due or step >= total):
            looked = step
            result, held_out = _look(trainee, loss, Step(step, total), judged_by)
            figures["held_out_loss"] = held_out
            if held_out < least:
                kept, least = result, held_out
        window.training_step(step, total, figures)
    return _look(trainee, None, Step(step, total), judged_by)[0] if kept is None else kept


def train_step(
    trainee: Trainee[T], loss: WindowLoss, rows: Tensor, at: Step, rate: float
) -> dict[str, float]:
    """One training step; its figures, ``loss`` among them.

    Args:
        trainee: what is trained.
        loss: of the window under the trainee's weights.
        rows: ``LongTensor[b]``, learning sequences of the window.
        at: the step.
        rate: its learning rate.
    """
    for settings in trainee.optimiser.param_groups:
        settings["lr"] = rate
    value = loss(trainee.weights(at), rows)
    trainee.optimiser.zero_grad(set_to_none=True)
    value.backward()
    trainee.optimiser.step()
    return {"loss": value.item(), **trainee.figures(at), "learning_rate": rate}


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


def _step(
    trainee: Trainee[T], loss: WindowLoss, rows: Tensor, at: Step, rate: float
) -> dict[str, float]:
    if isinstance(trainee, Trainee):
        return train_step(trainee, loss, rows, at, rate)
    trainee.total = at.total
    figures: dict[str, float] = trainee.step(rows, at.number)
    return figures


@torch.no_grad()
def _look(trainee: Trainee[T], loss: WindowLoss | None, at: Step, batch: int) -> tuple[T, float]:
    """The result as it is, and its loss on the held-out sequences where there is one."""
    if not isinstance(trainee, Trainee):
        trainee.total = at.total
        snapshot: tuple[T, float] = trainee.snapshot(max(1, at.number))
        return snapshot
    result, weights = trainee.result(at)
    return result, math.nan if loss is None else loss.held_out(weights, batch)
