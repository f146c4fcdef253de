"""The loop of components that train through a window, and keep what does best on held-out text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import attrs
import torch
from torch import Tensor

from permllm.deprecation import warn_of_old_name
from permllm.errors import RunFailed
from permllm.exhaustion import asked_for, out_of_memory
from permllm.freed_memory import give_back_freed_memory
from permllm.training.budget import FEWEST_STEPS, STEP_PER_LOOK, StepCount
from permllm.training.losses import WindowLoss
from permllm.training.resuming import Stand, TrainingCheckpoint
from permllm.training.steps import Parts, all_finite, give_gradients, parameters_of
from permllm.world import ALONE, World

if TYPE_CHECKING:
    from permllm.contexts.window import Window

__all__ = ["NotFiniteError", "Step", "StepCount", "Trainee", "batches", "cosine_decay",
           "linear_between", "train", "train_step"]  # fmt: skip

T = TypeVar("T")

MOST_SKIPPED = 3
"""So many steps of a training may have a loss or gradient that is no number."""

MOST_LOOKS = 50
"""A training looks at held-out text this many times in its length at most: a look may take as long
as a step."""


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


class NotFiniteError(ArithmeticError):
    """The loss or the gradient of a step is no number.

    Attributes:
        figures: of the step.
        what: which of them.
    """

    def __init__(self, figures: dict[str, float]) -> None:
        super().__init__(figures)
        self.figures = figures
        self.what = "gradient" if math.isfinite(figures["loss"]) else "loss"


class Trainee(Generic[T]):
    """What is trained: parameters, the window's weights under them, and what they come to.

    Attributes:
        optimiser: of the parameters; the loop sets its learning rate before every step.
    """

    optimiser: torch.optim.Optimizer

    resumable: ClassVar[bool] = False
    """Whether nothing of it changes from step to step but the parameters and what the optimiser
    notes of them. A training of hours that is killed then goes on where it was, if its result
    is a mapping of tensors."""

    def weights(self, at: Step) -> Mapping[str, Tensor]:
        """The pruned weights ``[C_out, C_in]`` by linear; gradients flow to the parameters.

        Called once for a step, also where memory has room for a part of its sequences only.
        """
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
        loss: of the window under the trainee's weights; a mean over the sequences that it is
            given, since memory may have room for a part of them only.
        rate: the learning rate at a step, counted from 1, of so many.
        count: how many steps.
        batch: sequences per step; fewer where a time has no room for four steps.
        fresh: draw from all learning sequences, not only from one pass of calibration.
        best: keep the result that does best on held-out sequences, looked at after every
            pass, or in a long training mostly near its end, the beginning included; else, or where
            there are none, the last. The first look also tells how long steps will take. A time
            without room for two then leaves the beginning as it is.

    A step for which there is no room in memory is done in parts, with the same gradient. One whose
    loss or gradient is not finite is skipped, and the learning rate is halved from then on. Where
    an earlier attempt of the run was killed, it goes on there (``Trainee.resumable``).

    Raises:
        RunFailed: loss or gradients are not finite for the fourth time or in every step, or
            not even one sequence finds room in memory.
    """
    if not isinstance(trainee, Trainee):
        warn_of_old_name("a trainee with step() and snapshot()", "permllm.training.loop.Trainee")
    window.progress("learning", 0, count.steps)
    best = best and len(window.held_out) > 0
    look = _Looks(trainee, window, batch)
    steps = _Steps(trainee, loss, window)
    checkpoint = TrainingCheckpoint(*_resumable(trainee), window)
    found = _went_on(checkpoint, count, steps, look)
    stand, kept = found or _beginning(look, loss if best else None, count, batch)
    window.progress("learning", stand.step, stand.total)
    a_pass = max(1, math.ceil(window.calibration / stand.batch))
    drawn = islice(batches(window, stand.batch, fresh=fresh), stand.step, None)
    while stand.step < stand.total:
        stand.step += 1
        at = Step(stand.step, stand.total)
        figures = steps.make(next(drawn), at, rate(at.number, at.total))
        stand.total = window.world.agreed(partial(count.total, stand.step))
        due = stand.step - stand.looked >= max(a_pass, apart(stand.step, stand.total))
        if best and (due or stand.step >= stand.total):
            stand.looked = stand.step
            result, held_out = look(loss, Step(stand.step, stand.total))
            figures["held_out_loss"] = held_out
            if held_out < stand.least:
                kept, stand.least = result, held_out
        window.training_step(stand.step, stand.total, figures)
        stand.course.append((stand.total, {name: float(one) for name, one in figures.items()}))
        stand.skipped, stand.parts = steps.skipped, steps.parts.most
        stand.look_parts = look.parts.most
        checkpoint.keep(stand, kept, count)
        if window.streamed:
            give_back_freed_memory()
    if stand.step and steps.skipped == stand.step:
        raise RunFailed(
            f"no step of {window.name} had a finite loss and gradient; a smaller learning_rate or "
            "float32 may help"
        )
    return look(None, Step(stand.step, stand.total))[0] if kept is None else kept


def _resumable(trainee: Trainee[T]) -> tuple[str, torch.optim.Optimizer | None]:
    """What a training is called, and its optimiser, if it can go on from that."""
    title = f"training of {type(trainee).__qualname__}"
    goes_on = isinstance(trainee, Trainee) and trainee.resumable
    return title, trainee.optimiser if goes_on else None


def _went_on(
    checkpoint: TrainingCheckpoint, count: StepCount, steps: _Steps[Any], look: _Looks[Any]
) -> tuple[Stand, Any] | None:
    """Where an earlier attempt was, if it was kept, and its best result; its steps are told of."""
    found = checkpoint.found()
    if found is None:
        return None
    stand, kept = found
    count.go_on(stand.spent, stand.stepped)
    steps.skipped, steps.parts.most = stand.skipped, stand.parts
    look.parts.most = stand.look_parts
    for step, (total, figures) in enumerate(stand.course, 1):
        look.window.training_step(step, total, figures)
    return stand, kept


def _beginning(
    look: _Looks[Any], loss: WindowLoss | None, count: StepCount, batch: int
) -> tuple[Stand, Any]:
    """Where a training stands before its first step, and what there is to keep.

    Args:
        look: looks at the beginning.
        loss: of the window; None where no result is chosen by it.
        count: how many steps.
        batch: sequences per step; they become fewer where a time has no room for four steps.
    """
    if loss is None:
        return Stand(count.total(0), batch), None
    window, began = look.window, time.monotonic()
    kept, least = look(loss, Step(0, count.steps))
    if count.seconds is None:
        return Stand(count.total(0), batch, least=least), kept
    pace = STEP_PER_LOOK * (time.monotonic() - began) / len(window.held_out)
    # By the first process's clock.
    batch, total, pace = window.world.agreed(lambda: (*count.sized(batch, pace), pace))
    if not total:
        window.warn(
            f"no training: a step takes about {pace * batch:.0f} s here, and the budget has "
            f"no room for {FEWEST_STEPS}; what training starts from is kept"
        )
    return Stand(total, batch, least=least), kept


def train_step(
    trainee: Trainee[T],
    loss: WindowLoss,
    rows: Tensor,
    at: Step,
    rate: float,
    parts: Parts | None = None,
    world: World = ALONE,
) -> dict[str, float]:
    """One training step; its figures, ``loss`` among them.

    Args:
        trainee: what is trained.
        loss: of the window under the trainee's weights.
        rows: ``LongTensor[b]``, learning sequences of the window.
        at: the step.
        rate: its learning rate.
        parts: how many sequences at once memory has room for, as far as is known.
        world: the processes that make the step together.

    Raises:
        NotFiniteError: loss or gradients are no numbers; the parameters are as they were.
    """
    for settings in trainee.optimiser.param_groups:
        settings["lr"] = rate
    parts = parts or Parts(lambda message: None)
    value = give_gradients(loss, trainee.weights(at), rows, trainee.optimiser, parts, world)
    finite = all_finite(value, parameters_of(trainee.optimiser))
    if finite:
        trainee.optimiser.step()
    figures = {"loss": value.item(), **trainee.figures(at), "learning_rate": rate}
    if not finite:
        raise NotFiniteError(figures)
    return figures


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


def apart(step: int, steps: int) -> int:
    """How many steps lie between two looks at held-out text, at a step of so many.

    A quarter of what is left: what is kept is almost always from the end, where the learning
    rate is small, and looks before it tell little.
    """
    return max(steps // MOST_LOOKS, (steps - step) // 4)


def linear_between(first: float, last: float, step: int, steps: int) -> float:
    """From ``first`` at step 1 to ``last`` at the last step."""
    return first + (last - first) * (step - 1) / max(1, steps - 1)


def cosine_decay(rate: float, step: int, steps: int) -> float:
    """Half a cosine from ``rate`` at step 1 down to zero."""
    return rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


@attrs.define
class _Steps(Generic[T]):
    """The steps of one training, and what has been met in them.

    Attributes:
        trainee, loss, window: as in :func:`train`.
        parts: how many sequences at once memory has room for.
        skipped: steps whose loss or gradient was no number.
    """

    trainee: Trainee[T]
    loss: WindowLoss
    window: Window
    parts: Parts = attrs.field(default=attrs.Factory(lambda self: Parts(self.window.warn), True))
    skipped: int = 0

    def make(self, rows: Tensor, at: Step, rate: float) -> dict[str, float]:
        """One step, at most; its figures."""
        if not isinstance(self.trainee, Trainee):
            return self._old_step(rows, at)
        rate *= 0.5**self.skipped
        try:
            world = self.window.world
            if world.many:
                self.loss.share_targets(rows)
            return train_step(self.trainee, self.loss, rows, at, rate, self.parts, world)
        except NotFiniteError as error:
            self.skipped += 1
            what = f"the {error.what} of {self.window.name} is not finite at step {at.number}"
            if self.skipped > MOST_SKIPPED:
                raise RunFailed(
                    f"{what} of {at.total}, after {MOST_SKIPPED} others that were skipped; "
                    "a smaller learning_rate or float32 may help"
                ) from error
            self.window.warn(
                f"the {error.what} is not finite at step {at.number} of {at.total}; the step is "
                "skipped, and the learning rate halved from now on"
            )
            return error.figures
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise _no_room(self.window, at, error) from error

    def _old_step(self, rows: Tensor, at: Step) -> dict[str, float]:
        self.trainee.total = at.total  # type: ignore[attr-defined]
        figures: dict[str, float] = self.trainee.step(rows, at.number)  # type: ignore[attr-defined]
        if not math.isfinite(figures["loss"]):
            # It has moved its parameters already.
            raise RunFailed(
                f"the loss of {self.window.name} is {figures['loss']} at step {at.number}; "
                "a smaller learning_rate or float32 may help"
            )
        return figures


@attrs.define
class _Looks(Generic[T]):
    """Looks at what a training has come to.

    Attributes:
        trainee, window: as in :func:`train`.
        batch: held-out sequences at once, if memory has room for them.
    """

    trainee: Trainee[T]
    window: Window
    batch: int
    parts: Parts = attrs.field(factory=lambda: Parts(lambda message: None))

    @torch.no_grad()
    def __call__(self, loss: WindowLoss | None, at: Step) -> tuple[T, float]:
        """The result as it is, and its loss on the held-out sequences where there is one."""
        if not isinstance(self.trainee, Trainee):
            self.trainee.total = at.total
            snapshot: tuple[T, float] = self.trainee.snapshot(max(1, at.number))
            return snapshot
        try:
            result, weights = self.trainee.result(at)
            if loss is None:
                return result, math.nan
            held_out = partial(loss.held_out, weights)
            if self.window.world.many:
                # Dealt out alike, whatever fits into the memory of each.
                held_out = partial(held_out, dealt=self.batch)
            return result, self.parts.fitting(self.batch, held_out)
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise _no_room(self.window, at, error) from error


def _no_room(window: Window, at: Step, error: Exception) -> RunFailed:
    asked = asked_for(error)
    want = f" ({asked} were asked for)" if asked else ""
    return RunFailed(
        f"no room in memory for step {at.number} of {at.total} of {window.name}, even with one "
        f"sequence at a time{want}"
    )
