"""The options that components which train through a window have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from permllm.components import Component
from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.durations import Duration
from permllm.option import option
from permllm.training.budget import StepCount, guessed_steps, steps_of
from permllm.training.loop import T, Trainee, cosine_decay, train
from permllm.training.losses import LOSSES, PRECISIONS, WindowLoss

if TYPE_CHECKING:
    from permllm.contexts.window import Window


@attrs.frozen
class TrainingOptions(Component):
    """How long to train, on which sequences, against what, and what to keep."""

    passes: int = option(
        10, help="passes over as many sequences as calibration asks for", minimum=1, maximum=10_000
    )
    steps: int | None = option(
        None, help="training steps in all, in place of passes", minimum=1, maximum=1_000_000
    )
    budget: Duration | None = option(
        None,
        help="time such as 30s, 5m or 1h for the whole model, in place of passes and steps: "
        "as many steps as fit, so what comes out depends on the machine's speed",
    )
    batch: int = option(4, help="sequences per training step", minimum=1, maximum=4096)
    fresh: bool = option(
        True, help="draw new sequences in every pass instead of repeating the first ones"
    )
    loss: str = option(
        "kl",
        help="distance to the dense model: kl of the logits (windows that do not reach the "
        "last layer take cosine), cosine of the hidden states, or next-token, the model's own loss",
        choices=tuple(LOSSES),
    )
    precision: str = option(
        "auto",
        help="matrix products of a step: in the model's dtype (model), in bfloat16 (autocast), "
        "or in bfloat16 where the processor multiplies it natively (auto)",
        choices=PRECISIONS,
    )
    learning_rate: float = option(0.02, help="learning rate at the first step", minimum=0)
    learning_rate_end: float = option(0.0, help="learning rate that the cosine falls to", minimum=0)
    schedule: str = option(
        "cosine",
        help="course of the learning rate: to its end along half a cosine, or constant",
        choices=("cosine", "constant"),
    )
    recompute: bool = option(
        False,
        help="compute each layer's activations again for the backward pass instead of keeping "
        "them, and logits one sequence at a time: less memory, one more forward pass",
    )
    select: str = option(
        "best",
        help="what to keep: the best on held-out sequences, the start included; or the last",
        choices=("best", "last"),
    )

    def training_steps(self, calibration: int) -> int:
        """Steps in all, where a pass has ``calibration`` sequences; with a budget, a guess."""
        if self.budget is not None:
            return guessed_steps(self.budget.seconds)
        return steps_of(self.steps, self.passes, self.batch, calibration)

    def sequences(self, calibration: int) -> int:
        """Every step's own sequences if they are fresh, else one pass's."""
        if not self.fresh:
            return calibration
        return max(calibration, self.training_steps(calibration) * self.batch)

    def cost(self, workload: Workload) -> ComponentCost:
        """Of the training, and of what it starts from."""
        steps = self.training_steps(workload.sequences)
        timed = self.budget is not None
        own = ComponentCost(
            trained=0 if timed else steps * self.batch,
            batch=self.batch,
            seconds=self.budget.seconds if self.budget else 0.0,
        )
        return own + super().cost(workload)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step; ``step`` counts from 1."""
        if self.schedule == "constant":
            return self.learning_rate
        end = self.learning_rate_end
        return end + cosine_decay(self.learning_rate - end, step, steps)

    def window_loss(self, window: Window) -> WindowLoss:
        """The loss of a window, with these options."""
        return WindowLoss.of(window, self.loss, self.precision, recompute=self.recompute)

    def count(self, window: Window) -> StepCount:
        """How many steps there will be in a window. A budget runs from now on.

        Windows share it by their numbers of layers.
        """
        share = len(window.layers) / len(window.decoder.layers)
        seconds = self.budget.seconds * share if self.budget else None
        return StepCount(self.training_steps(window.calibration), seconds)

    def train(self, trainee: Trainee[T], window: Window, count: StepCount | None = None) -> T:
        """Train through a window, and give what there is to keep.

        Args:
            trainee: what is trained.
            window: the window.
            count: from :meth:`count`, where a budget has begun to run before.

        Raises:
            RunFailed: the loss is not finite.
        """
        return train(
            trainee,
            window,
            self.window_loss(window),
            rate=self.learning_rate_at,
            count=count or self.count(window),
            batch=self.batch,
            fresh=self.fresh,
            best=self.select == "best",
        )
