"""The keys of a chain's stages: what each of its results depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from permllm.components import Allocation, Component, PermutationLearner, Pruner
from permllm.core.digest import tensor_digest
from permllm.core.statistics import Statistic
from permllm.pipeline.schema import Pipeline
from permllm.runner.caching.keys import (
    Unhashable,
    component_key,
    digest,
    statistic_key,
)
from permllm.runner.caching.memo import Stages
from permllm.runner.calibration import Sequences
from permllm.runner.selection import LinearSettings


@attrs.define(eq=False)
class ChainKeys:
    """Keys for the current window and for the model that the windows make.

    Attributes:
        stages: makes the keys, from a base that covers model, code and machine.
        pipeline: what the chain does.
        sequences: its tokens.
        settings: of every linear that is pruned.
        layer_of: the decoder layer of every linear.
        before: the keys of the finished windows.
    """

    stages: Stages
    pipeline: Pipeline
    sequences: Sequences
    settings: Mapping[str, LinearSettings]
    layer_of: Mapping[str, int]
    before: list[str | None] = attrs.field(factory=list)
    calibration: str = attrs.field(init=False)
    everything: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        sequences = self.sequences
        self.calibration = digest(
            tensor_digest(sequences.tokens[: sequences.calibration]), sequences.batch_size
        )
        rows = [sequences.calibration, sequences.learning.tolist(), sequences.held_out.tolist()]
        self.everything = digest(tensor_digest(sequences.tokens), rows, sequences.batch_size)

    def passed(self, window: str | None) -> None:
        """Note the key of a finished window."""
        self.before.append(window)

    def model(self) -> str:
        """Of the pruned model; empty where that cannot be told."""
        return "" if None in self.before else digest(self.before)

    def statistic(self, statistic: Statistic, layers: range) -> str | None:
        """Of a statistic of all groups of some layers."""
        return self.stages.key(
            "statistics",
            lambda: [self._inputs(), _ends(layers), self.calibration, statistic_key(statistic)],
        )

    def allocation(self, allocation: Allocation) -> list[Any]:
        """What an allocation's figures of all layers depend on."""
        linears = [
            [name, str(settings.pattern), *_scorers(settings)]
            for name, settings in self.settings.items()
        ]
        return [component_key(allocation, "train"), self.everything, self.pipeline.seed, linears]

    def permutations(self, learner: PermutationLearner, layers: range) -> str | None:
        """Of what a learner finds for a window."""
        return self.stages.key("permutations", lambda: self._order(learner, layers))

    def component(self, component: Component) -> str | None:
        """Of one of those who work at a window."""
        return self.stages.key("component", lambda: component_key(component))

    def window(self, layers: range) -> str | None:
        """Of a pruned window."""

        def parts() -> list[Any]:
            here = self._here(layers)
            pruners = [[name, component_key(settings.pruner)] for name, settings in here.items()]
            looks = any(_looks(settings.pruner) for settings in here.values())
            order = self._order(self.pipeline.layers.permutation, layers)
            return [order, pruners, self.everything if looks else None]

        return self.stages.key("windows", parts)

    def _order(self, learner: PermutationLearner, layers: range) -> list[Any]:
        here = self._here(layers)
        looks = any(
            settings.metric.looks() or settings.pruner.refines_first for settings in here.values()
        )
        tokens = self.calibration if learner.only_scores and not looks else self.everything
        return [
            self._inputs(),
            _ends(layers),
            # The window's seed depends on its index.
            [len(self.before), self.pipeline.seed],
            component_key(learner, "train"),
            [[name, str(settings.pattern), *_scorers(settings)] for name, settings in here.items()],
            [self.pipeline.layers.foldable, self.pipeline.layers.residual],
            [self.calibration, tokens],
        ]

    def _inputs(self) -> Any:
        """What enters the window; raises Unhashable where that cannot be told."""
        if self.pipeline.layers.inputs == "dense":
            return "dense"
        if None in self.before:
            raise Unhashable("a window before")
        return list(self.before)

    def _here(self, layers: range) -> dict[str, LinearSettings]:
        return {
            name: settings
            for name, settings in self.settings.items()
            if self.layer_of[name] in layers
        }


def _scorers(settings: LinearSettings) -> list[Any]:
    """What decides about the scores that learners see."""
    pruners = [settings.pruner] if settings.pruner.refines_first else []
    return [component_key(one) for one in (settings.metric, *pruners)]


def _looks(pruner: Pruner) -> bool:
    """Whether a pruner looks at the whole window, and so at all sequences."""
    own = type(pruner)
    return own.refine is not Pruner.refine or own.update is not Pruner.update


def _ends(layers: range) -> list[int]:
    return [layers.start, layers.stop]
