"""The stage after importance: the permutations that a learner finds for a window."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
from torch import Tensor

from permllm.components import PermutationLearner
from permllm.contexts.constrained import ConstrainedWindow
from permllm.contexts.window import Window
from permllm.folding.constraints import Constraints
from permllm.given import Giver, by_name, permutation_fault
from permllm.models.linears import Group
from permllm.models.unchanged import unchanged
from permllm.results import Cost
from permllm.runner.caching.chain_keys import ChainKeys
from permllm.runner.caching.memo import Outcome, Stages
from permllm.runner.reporting import Reporter
from permllm.runs.windows import TrainingStep


@attrs.frozen(eq=False)
class Learning:
    """Has learners learn, each once for what its permutations depend on.

    Attributes:
        stages: keeps what was learned.
        keys: what that depends on.
        reporter: is told of every step.
        constraints: what permutations the groups may get.
    """

    stages: Stages
    keys: ChainKeys
    reporter: Reporter
    constraints: Constraints

    def within_constraints(self, learner: PermutationLearner, window: Window) -> Outcome:
        """One permutation ``LongTensor[C_in]`` for each group of a window, and their cost."""
        if not self.constraints:
            return self.permutations(learner, window)
        constrained = ConstrainedWindow.of(window, self.constraints)
        outcome = self.permutations(learner, constrained.view)
        return attrs.evolve(outcome, tensors=constrained.expanded(outcome.tensors))

    def permutations(self, learner: PermutationLearner, window: Window) -> Outcome:
        """What a learner learns for a window, now or in an earlier run."""
        # Where every linear stays dense or every group keeps its order, there is nothing to learn.
        if not window.groups:
            return Outcome({}, Cost())

        def learn(log: list[Any]) -> dict[str, Tensor]:
            watched = attrs.evolve(
                window,
                on_step=partial(self.step, window.index, "permutation", window.name, log),
                checkpoints=window.checkpoints.of(key),
            )
            giver = Giver("permutation learner", learner)
            with unchanged(window.decoder.model, giver, sampled=0):
                given = learner.learn(watched)
            permutations = by_name(given, giver, "permutations")
            _check(permutations, window.groups, giver)
            return {group: permutations[group] for group in window.groups}

        key = self.keys.permutations(learner, window.layers)
        stage = f"order ({learner.name}), {window.name}"
        outcome = self.stages.tensors("permutations", key, learn, stage=stage)
        if outcome.reused:
            # Its course belongs to this run's record as well.
            for step, total, figures in outcome.log:
                made = TrainingStep("permutation", step, total, figures)
                self.reporter.step(window.index, made, replayed=True)
        # In one order, reused or not: learners that start from them draw random numbers in it.
        tensors = {group: outcome.tensors[group] for group in window.groups}
        return attrs.evolve(outcome, tensors=tensors)

    def step(
        self,
        index: int,
        stage: str,
        name: str,
        log: list[Any],
        step: int,
        total: int,
        figures: dict[str, float],
    ) -> None:
        """Note a training step of window ``index``, which is called ``name``."""
        # Components are anybody's: a number of numpy's cannot be kept as JSON.
        plain = {figure: float(value) for figure, value in figures.items()}
        log.append((step, total, plain))
        self.reporter.step(index, TrainingStep(stage, step, total, plain))
        self.reporter.progress(f"learning, {name}", step, total)


def _check(permutations: Mapping[str, Tensor], groups: Mapping[str, Group], giver: Giver) -> None:
    for name, group in groups.items():
        if fault := permutation_fault(permutations.get(name), group.channels):
            raise giver.wrong(
                f"gave no permutation of the {group.channels} input channels of {name}: {fault}"
            )
